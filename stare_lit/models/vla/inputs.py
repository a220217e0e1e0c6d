"""What a policy reads from a TensorDict, with its leading dimensions flattened."""

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from stare_lit import keys
from stare_lit.models.vla.config import VLAConfig
from stare_lit.models.vla.instruction import PromptTokenizer, flatten_text


@dataclass(frozen=True)
class Inputs:
    """N observations.

    Attributes:
        images: uint8 [N, cameras, 3, H, W], or None.
        state: float [N, state_dim], or None.
        prompt: int64 [N, prompt_length], padded on the left.
        signals: float [N, number of the value head's signals], or None.
    """

    images: Tensor | None
    state: Tensor | None
    prompt: Tensor
    signals: Tensor | None

    def trimmed_prompt(self, pad_id: int) -> tuple[Tensor, bool]:
        """The prompt without the columns that are padding in every row, and whether any padding is left."""
        counts = (self.prompt != pad_id).sum(dim=-1)
        shortest, longest = (int(bound) for bound in torch.stack(counts.aminmax()).tolist())
        return self.prompt[:, self.prompt.shape[1] - longest :], shortest < longest


def read_inputs(tensordict: TensorDictBase, config: VLAConfig, prompts: PromptTokenizer, *, value: bool) -> Inputs:
    """Collect and flatten; privileged signals only where a ``value`` is asked for. Raises ValueError naming what is missing or does not fit the policy."""
    batch = tensordict.batch_size
    num = batch.numel()
    places = [(*keys.IMAGE, camera) for camera in config.cameras] if len(config.cameras) > 1 else [keys.IMAGE]
    images = state = None
    if config.towers:
        images = torch.stack([(image := _get(tensordict, place)).reshape(num, *image.shape[len(batch) :]) for place in places], dim=1)
    if config.state_dim:
        state = _get(tensordict, keys.STATE)
        if state.shape[-1] != config.state_dim:
            raise ValueError(f"observation state: has {state.shape[-1]} numbers, the policy was built for state_dim={config.state_dim}; use its task and robot")
        state = state.reshape(num, -1)
    signals = None
    if value and config.value_head.signals:
        signals = torch.stack([_get(tensordict, keys.signal(name)).reshape(num) for name in config.value_head.signals], dim=-1)
    seen = state if images is None else images
    assert seen is not None  # a policy without towers has a state
    return Inputs(images, state, _prompt(tensordict, num, prompts).to(seen.device), signals)


def _get(tensordict: TensorDictBase, place: tuple[str, ...]) -> Tensor:
    value = tensordict.get(place, None)
    if not isinstance(value, Tensor):
        raise ValueError(f"the policy reads {place}, which the TensorDict lacks as a tensor; it holds {sorted(map(str, tensordict.keys(True, True)))}")
    return value


def _prompt(tensordict: TensorDictBase, num: int, prompts: PromptTokenizer) -> Tensor:
    tokens = tensordict.get(keys.INSTRUCTION_TOKENS, None)
    if tokens is not None:
        if tokens.shape[-1] != prompts.length:
            raise ValueError(f"{keys.INSTRUCTION_TOKENS}: of length {tokens.shape[-1]}, the policy's prompt_length is {prompts.length}")
        return tokens.reshape(num, -1)
    text = tensordict.get(keys.INSTRUCTION, None)
    if text is None:
        raise ValueError(f"the TensorDict has neither {keys.INSTRUCTION!r} (text) nor {keys.INSTRUCTION_TOKENS!r}; add the InstructionText transform")
    texts = flatten_text(text.tolist() if hasattr(text, "tolist") else text)
    if len(texts) != num:
        raise ValueError(f"{keys.INSTRUCTION!r}: holds {len(texts)} texts for {num} observations; give one each")
    return prompts(texts)
