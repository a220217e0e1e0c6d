"""Instruction text -> prompt token ids, padded on the left to one length."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

SHIPPED = Path(__file__).parent / "tokenizer" / "tokenizer.json"


class PromptTokenizer:
    """Formats an instruction into the prompt and tokenises it; remembers every text it has seen.

    Padding stands on the *left*, so that the last prompt token always is the last of the context: it predicts the first action token.
    """

    def __init__(self, path: str | Path, prompt: str, length: int, pad_id: int, suffix: tuple[int, ...] = ()) -> None:
        path = SHIPPED if str(path) == "robot" else Path(path)
        if not path.is_file():
            raise ValueError(f"tokenizer={str(path)!r}: no such file; give 'robot' for the one that ships or the path of a tokenizer.json")
        self.json = path.read_text(encoding="utf-8")
        try:
            self._tokenizer = Tokenizer.from_str(self.json)
        except Exception as error:  # `tokenizers` raises bare Exception
            raise ValueError(f"tokenizer={str(path)!r}: is not a tokenizer.json ({error}); give the file that `tokenizers` writes") from error
        self._tokenizer.no_padding()
        self._prompt, self.length, self._pad_id, self._suffix = prompt, length, pad_id, list(suffix)
        self._cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """Number of text token ids."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, texts: Iterable[str]) -> Tensor:
        """Texts -> int64 [N, length], padded on the left. Raises ValueError for an instruction that is empty or too long."""
        return torch.tensor([self._encode(text) for text in texts], dtype=torch.int64).view(-1, self.length)

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"instruction={text!r}: must be a text that is not empty")
            prompt = self._prompt.format(instruction=text.strip().lower())
            ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
            if self._suffix and ids[-len(self._suffix) :] != self._suffix:  # OpenVLA adds its empty token only where the prompt does not end with it
                ids = ids + self._suffix
            if len(ids) > self.length:
                raise ValueError(f"instruction={text!r}: {len(ids)} tokens with its prompt; shorten it or raise prompt_length={self.length}")
            self._cache[text] = [self._pad_id] * (self.length - len(ids)) + ids
        return self._cache[text]


def flatten_text(value: Any) -> list[str]:
    """A string, or (nested) lists of strings as ``tolist`` of a NonTensorStack gives them -> flat list, row-major."""
    if isinstance(value, str):
        return [value]
    return [text for item in value for text in flatten_text(item)]
