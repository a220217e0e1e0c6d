"""OpenVLA's prompt: its wording, lower case, and the empty token after it."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from stare_lit.models.vla.config import OPENVLA_PROMPT
from stare_lit.models.vla.instruction import PromptTokenizer
from stare_lit.models.vla.openvla_config import OPENVLA_SUFFIX
from stare_lit.models.vla.presets import openvla_7b_config

PAD = 32000


@pytest.fixture
def llama_like(tmp_path):
    """Characters as tokens with Llama's normaliser (a blank in front, blanks as an underscore), the lone blank being id 29871 there."""
    letters = sorted(set("▁:?\n" + "abcdefghijklmnopqrstuvwxyzIOW"))
    vocab = {letter: 100 + index for index, letter in enumerate(letters)} | {"▁": OPENVLA_SUFFIX[0], "<unk>": 0}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def text_and_ids(path, instruction, prompt=OPENVLA_PROMPT, suffix=OPENVLA_SUFFIX):
    row = PromptTokenizer(path, prompt, 80, PAD, suffix)([instruction])[0].tolist()
    ids = [token for token in row if token != PAD]
    assert row == [PAD] * (80 - len(ids)) + ids  # padding on the left
    return Tokenizer.from_file(str(path)).decode(ids), ids


def test_the_official_wording_in_lower_case(llama_like):
    text, ids = text_and_ids(llama_like, "Put the Carrot on Plate")
    assert text == " In: What action should the robot take to put the carrot on plate?\nOut: "
    assert ids[-1] == 29871 and ids[-2] != 29871


def test_the_empty_token_is_added_once(llama_like):
    """The official code looks at the last token first."""
    with_blank = text_and_ids(llama_like, "push", OPENVLA_PROMPT + " ")[1]
    assert with_blank == text_and_ids(llama_like, "push")[1]
    assert text_and_ids(llama_like, "push", suffix=())[1] == with_blank[:-1]


def test_no_begin_token_for_the_policy_puts_it_before_the_image(llama_like):
    assert 1 not in text_and_ids(llama_like, "push")[1]


def test_the_preset_asks_for_it():
    config = openvla_7b_config()
    assert config.prompt == OPENVLA_PROMPT and config.prompt_suffix == OPENVLA_SUFFIX and config.bos_id == 1
