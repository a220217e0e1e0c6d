"""Other image-text models of transformers as the trunk: small, random, offline."""

import dataclasses

import pytest
import torch
from lightning import LightningDataModule, Trainer
from tensordict import TensorDict
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForImageTextToText

from stare_lit import keys
from stare_lit.algorithms.lora import LoraSettings
from stare_lit.algorithms.sft import SFTModule
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.data.rollouts import RolloutDataModule
from stare_lit.models.vla import ActionStatistics, VLAPolicy
from stare_lit.models.vla.image_text import load_image_text

TEXT = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CONFIGS = {
    "idefics3": {"image_token_id": 5, "scale_factor": 2, "text_config": {"model_type": "llama", **TEXT, "pad_token_id": 0}, "vision_config": VISION},
    "smolvlm": {"image_token_id": 5, "scale_factor": 2, "text_config": {"model_type": "llama", **TEXT, "pad_token_id": 0}, "vision_config": VISION},
    "paligemma": {
        "image_token_index": 5,
        "projection_dim": 32,
        "text_config": {"model_type": "gemma", **TEXT, "head_dim": 16, "pad_token_id": 0},
        "vision_config": {"model_type": "siglip_vision_model", **VISION, "projection_dim": 32, "vision_use_head": False},
    },
}
NUM_BINS = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved random model of each kind."""
    root = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(AutoConfig.for_model(name, **config)).save_pretrained(root / name)
    return root


def load(folders, name, **settings):
    return load_image_text(str(folders / name), **{"tokenizer": "robot", "num_bins": NUM_BINS, "prompt": "{instruction}", **settings})


def observe(*batch):
    generator = torch.Generator().manual_seed(0)
    td = TensorDict({keys.IMAGE: torch.randint(0, 256, (*batch, 3, 32, 32), dtype=torch.uint8, generator=generator)}, batch)
    td[keys.INSTRUCTION] = "push the blue cube to the red and white target"
    return td


@pytest.mark.parametrize("name", CONFIGS)
def test_the_whole_interface(folders, name):
    policy = load(folders, name)
    td = policy.act(observe(3), temperature=1.0, value=True)
    out = policy.evaluate_actions(td, value=True)
    torch.testing.assert_close(out["log_probs"], td[keys.LOG_PROBS], atol=1e-5, rtol=0.0)
    torch.testing.assert_close(policy.value_only(td), td[keys.STATE_VALUE], atol=1e-5, rtol=0.0)
    assert policy.logits(td).shape == (3, 1, 7, NUM_BINS) and policy.logits(td, full_vocabulary=True).shape == (3, 1, 7, 400)
    (out["log_probs"].sum() + out["state_value"].sum()).backward()
    vision = [parameter.grad for name, parameter in policy.named_parameters() if "vision" in name and parameter.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in vision)
    assert not [name for name, _ in policy.named_parameters() if name.startswith("vision.")]  # registered once


def test_logits_are_the_models_own(folders):
    """Idefics3 itself, with its image token repeated where we put the patches."""
    policy, td = load(folders, "idefics3"), observe(2)
    policy.act(td, temperature=0.0)
    model = AutoModelForImageTextToText.from_pretrained(folders / "idefics3")
    prompt, _ = policy._read(td, value=False).trimmed_prompt(policy.config.pad_id)
    pixels = policy.vision.prepare(td[keys.IMAGE])[0]
    patches = policy.vision(td[keys.IMAGE]).shape[1]
    actions = td[keys.ACTION_TOKENS].flatten(1)[:, :-1] + policy.window_offset
    ids = torch.cat([torch.full((2, 1), policy.config.bos_id), torch.full((2, patches), 5), prompt, actions], dim=1)
    with torch.no_grad():
        theirs = model(input_ids=ids, pixel_values=pixels[:, None]).logits[:, -7:]
        ours = policy.logits(td, full_vocabulary=True)[:, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("name", ["smolvlm", "paligemma"])  # the second ties its output head to the embedding
def test_round_trip_through_our_folder(folders, name, tmp_path):
    policy = load(folders, name, value_signals=("grasped",))
    policy.save_pretrained(tmp_path)
    again = VLAPolicy.from_pretrained(tmp_path)
    assert again.config == policy.config
    ours, theirs = (p.act(observe(2), temperature=0.0)[keys.LOG_PROBS] for p in (policy, again))
    assert torch.equal(ours, theirs)
    model = VLAPolicy.from_pretrained(tmp_path, dtype=None).language_model
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (name == "paligemma")


class SameRows(LightningDataModule):
    """Four decisions again and again."""

    chunk_size, action_statistics = 1, ActionStatistics.identity(7)

    def train_dataloader(self):
        batch = observe(4)
        batch[keys.ACTION_CHUNK] = torch.rand(4, 1, 7, generator=torch.Generator().manual_seed(1)) * 2 - 1
        batch[keys.ACTION_IS_PAD] = torch.zeros(4, 1, dtype=torch.bool)
        return DataLoader([batch], batch_size=None, collate_fn=lambda rows: rows)


def fit(tmp_path, module, data, **limit):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **limit, **quiet)
    trainer.fit(module, data)
    return trainer.callback_metrics


def test_sft_lowers_its_loss(folders, tmp_path):
    module = SFTModule(load(folders, "smolvlm"), learning_rate=3e-3, classes="vocabulary", warmup_steps=0, schedule="constant")
    first = fit(tmp_path, module, SameRows(), max_steps=1)["train/loss"].item()
    assert fit(tmp_path, module, SameRows(), max_steps=30)["train/loss"] < 0.7 * first


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_a_round_of_ppo(folders, tmp_path, lora):
    """Experience of the toy task, a first update at ratio 1, and both policy and value have moved."""
    policy = load(folders, "idefics3")
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    data = RolloutDataModule("Toy-v0", num_envs=3, decisions_per_env=4, max_episode_steps=5)
    module = StaPPOModule(policy, num_epochs=1, minibatch_size=12, value_warmup_rounds=0, learning_rate=1e-3, lora=lora)
    metrics = fit(tmp_path, module, data, max_epochs=1)
    assert abs(metrics["train/approx_kl"]) < 1e-5 and metrics["train/loss"].isfinite()
    after = dict(module.merged_policy().named_parameters())
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"language_model", "value_head"}


def test_errors(folders, tmp_path):
    with pytest.raises(ValueError, match="is no image-text model"):
        load_image_text(str(tmp_path), tokenizer="robot")
    with pytest.raises(ValueError, match="go with a backbone"):
        dataclasses.replace(load(folders, "idefics3").config, projector="linear")
