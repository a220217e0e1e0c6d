"""OpenVLA checkpoints from folders and the Hub's cache, back into that layout, and one clear error for everything else."""

import json
import shutil

import pytest
import torch
from openvla_files import FOLDER, SUFFIX, copy_tiny, load_tiny, vision
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

from stare_lit import keys
from stare_lit.algorithms.lora import LoraSettings, add_adapter, merged_copy
from stare_lit.cli import main as front
from stare_lit.models.vla import ActionStatistics, VLAPolicy
from stare_lit.models.vla.openvla import export_openvla, load_openvla
from stare_lit.models.vla.presets import tiny
from stare_lit.models.vla.shards import Shards


def edit(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def same_tensors(one, other):
    one, other = Shards(one), Shards(other)
    return one.names == other.names and all(torch.equal(one.get(name), other.get(name)) and one.get(name).dtype == other.get(name).dtype for name in one.names)


class TestLoad:
    def test_statistics_and_sizes(self):
        policy = load_tiny()
        stats = json.loads((FOLDER / "config.json").read_text())["norm_stats"]["tiny_arm"]["action"]
        assert policy.actions.statistics == ActionStatistics(tuple(stats["q01"]), tuple(stats["q99"]), tuple(stats["mask"]))
        assert policy.config.prompt_suffix == SUFFIX and policy.config.image_crop == 1.0 and policy.origin == FOLDER
        assert not [name for name, tensor in policy.state_dict().items() if tensor.is_meta]

    def test_value_head_is_fresh_and_depends_on_the_seed_alone(self):
        before = torch.get_rng_state()
        policies = [load_tiny(seed=seed) for seed in (1, 1, 2)]
        assert torch.equal(before, torch.get_rng_state())
        first, second, other = (policy.value_head.mlp[0].weight for policy in policies)
        assert torch.equal(first, second) and not torch.equal(first, other)
        assert policies[0].value_head.mlp[-1].weight.abs().sum() == 0

    def test_every_parameter_can_be_trained(self):
        assert all(parameter.requires_grad and parameter.is_leaf for parameter in load_tiny().parameters())

    def test_dtype(self):
        policy = load_tiny(dtype="bfloat16")
        kinds = {name.split(".")[0]: parameter.dtype for name, parameter in policy.named_parameters()}
        assert kinds == {"vision": torch.bfloat16, "projector": torch.bfloat16, "language_model": torch.bfloat16, "value_head": torch.float32}
        assert policy.language_model.model.rotary_emb.inv_freq.dtype == torch.float32 and policy.actions.q01.dtype == torch.float64
        td = TensorDict({keys.IMAGE: torch.zeros(2, 3, 56, 56, dtype=torch.uint8), keys.INSTRUCTION: "push"}, [2])
        policy.act(td, temperature=1.0, value=True)
        assert torch.isfinite(policy.evaluate_actions(td, value=True)["log_probs"]).all()
        with pytest.raises(ValueError, match="float8"):
            load_tiny(dtype="float8")

    def test_fine_tuned_with_statistics_beside(self, tmp_path):
        """The official fine-tuning script writes them into a file of their own."""
        folder = copy_tiny(tmp_path / "tuned")
        entry = {"action": {"q01": [-2.0] * 7, "q99": [2.0] * 7}}
        (folder / "dataset_statistics.json").write_text(json.dumps({"mine": entry}))
        assert load_tiny(folder, unnorm_key="mine").actions.statistics == ActionStatistics((-2.0,) * 7, (2.0,) * 7, (True,) * 7)
        assert load_tiny(folder, unnorm_key="tiny_arm").actions.statistics == load_tiny().actions.statistics
        with pytest.raises(ValueError, match="unnorm_key=None: choose the action statistics of one of mine, tiny_arm"):
            load_tiny(folder)

    def test_stored_normalisation_wins(self, tmp_path):
        """The published processor stores ImageNet's numbers rounded to bfloat16, and applies those."""
        folder = copy_tiny(tmp_path / "rounded")
        params = [{"mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]}, {"mean": [0.5] * 3, "std": [0.5] * 3}]
        (folder / "preprocessor_config.json").write_text(json.dumps({"interpolations": ["bicubic"] * 2, "tvf_normalize_params": params}))
        assert load_tiny(folder).config.towers[0].image_mean == (0.484375, 0.455078125, 0.40625)
        (folder / "preprocessor_config.json").write_text(json.dumps({"interpolations": ["bilinear"] * 2}))
        with pytest.raises(ValueError, match="interpolations"):
            load_tiny(folder)

    def test_from_the_hubs_cache(self, tmp_path, monkeypatch):
        snapshot = tmp_path / "models--someone--tuned" / "snapshots" / ("0" * 40)
        snapshot.parent.mkdir(parents=True)
        copy_tiny(snapshot)
        (tmp_path / "models--someone--tuned" / "refs").mkdir()
        (tmp_path / "models--someone--tuned" / "refs" / "main").write_text("0" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        settings = {"tokenizer": "robot", "prompt_suffix": SUFFIX, "vision": vision()}
        assert torch.equal(load_openvla("someone/tuned", **settings).projector[0].weight, load_tiny().projector[0].weight)
        with pytest.raises(ValueError, match="nor in the Hub's cache; give download: true"):
            load_openvla("someone/absent", **settings)

    def test_as_one_line_of_yaml(self, tmp_path):
        from jsonargparse import ArgumentParser
        from torch import nn

        parser = ArgumentParser()
        parser.add_argument("--policy", type=nn.Module)
        init_args = {"path": str(FOLDER), "unnorm_key": "tiny_arm", "tokenizer": "robot", "prompt_suffix": list(SUFFIX), "vision": vision()}
        config = parser.parse_object({"policy": {"class_path": "stare_lit.models.vla.openvla.load_openvla", "init_args": init_args}})
        assert isinstance(parser.instantiate(config).policy, VLAPolicy)


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "llava"}, "model_type='llava'"),
            ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone"),
            ({"image_resize_strategy": "letterbox"}, "image_resize_strategy='letterbox'"),
            ({"timm_model_ids": ["vit_large_patch14_clip_336.openai"]}, "timm_model_ids"),
            ({"timm_override_act_layers": [None, "quick_gelu"]}, "timm_override_act_layers"),
            ({"image_sizes": [56, 224]}, "image_sizes"),
            ({"norm_stats": {}}, "holds no norm_stats"),
            ({"norm_stats": {"tiny_arm": {}}}, "has no q01 and q99"),
            ({"text_config": {"model_type": "phi"}}, "text_config.model_type='phi'"),
        ],
    )
    def test_other_models(self, tmp_path, changes, message):
        folder = copy_tiny(tmp_path / "other")
        edit(folder, **changes)
        with pytest.raises(ValueError, match=message):
            load_tiny(folder)

    def test_unknown_statistics(self):
        with pytest.raises(ValueError, match="unnorm_key='bridge_orig': choose the action statistics of one of tiny_arm"):
            load_tiny(unnorm_key="bridge_orig")

    def test_missing_and_left_over_weights_are_listed(self, tmp_path):
        folder = copy_tiny(tmp_path / "damaged")
        weights = load_file(folder / "model.safetensors")
        weights["projector.fc4.bias"] = weights.pop("projector.fc3.bias")
        del weights["vision_backbone.featurizer.norm.bias"]
        save_file(weights, folder / "model.safetensors")
        message = r"missing projector\.fc3\.bias, vision_backbone\.featurizer\.norm\.bias; left over projector\.fc4\.bias"
        with pytest.raises(ValueError, match=message):
            load_tiny(folder)

    def test_other_shapes_are_listed(self):
        with pytest.raises(ValueError, match=r"other shapes .*featurizer\.cls_token \[1, 1, 32\] \(config: \[1, 1, 48\]\).* and \d+ more"):
            load_tiny(vision=[{**vision()[0], "hidden_size": 48}, vision()[1]])

    def test_no_folder_no_tokenizer_no_suffix(self, tmp_path):
        with pytest.raises(ValueError, match="no such folder"):
            load_tiny(tmp_path / "absent")
        with pytest.raises(ValueError, match=r"holds no config\.json"):
            load_tiny(tmp_path)
        with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
            load_tiny(tokenizer=None)
        with pytest.raises(ValueError, match="prompt_suffix=29871: the vocabulary of this checkpoint has 512 ids"):
            load_tiny(prompt_suffix=None)

    def test_damaged_files(self, tmp_path):
        folder = copy_tiny(tmp_path / "damaged")
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:-9])
        with pytest.raises(ValueError, match="no whole safetensors file"):
            load_tiny(folder)
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
        with pytest.raises(ValueError, match="pickled weights .* are never read"):
            load_tiny(folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
        with pytest.raises(ValueError, match="which is missing"):
            load_tiny(folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
        with pytest.raises(ValueError, match="no safetensors files of this folder"):
            load_tiny(folder)
        (folder / "model.safetensors.index.json").write_text("[]")
        with pytest.raises(ValueError, match="is damaged"):
            load_tiny(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(ValueError, match="is not JSON"):
            load_tiny(folder)


class TestExport:
    @pytest.mark.parametrize("max_shard_bytes", [10**9, 500_000])
    def test_round_trip_to_the_bit(self, tmp_path, max_shard_bytes):
        policy = load_tiny()
        assert export_openvla(policy, tmp_path / "out", max_shard_bytes=max_shard_bytes) == "tiny_arm"
        assert same_tensors(FOLDER, tmp_path / "out")
        official, ours = (json.loads((folder / "config.json").read_text()) for folder in (FOLDER, tmp_path / "out"))
        extra = ours.pop("stare_lit")
        assert ours == official and extra["prompt_suffix"] == list(SUFFIX)
        again = load_openvla(str(tmp_path / "out"))  # needs nothing more
        assert again.config.towers == policy.config.towers and again.config.llm == policy.config.llm
        assert all(torch.equal(a, b) for a, b in zip(policy.state_dict().values(), again.state_dict().values(), strict=True))
        shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
        assert shards == (
            ["model.safetensors"] if max_shard_bytes == 10**9 else [f"model-{part}-of-00004.safetensors" for part in ("00001", "00002", "00003", "00004")]
        )
        if len(shards) > 1:
            index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
            assert index["metadata"]["total_size"] == 4 * 393_420 and len(index["weight_map"]) == 130

    def test_through_our_own_folder(self, tmp_path):
        """Fine-tuning ends in a folder of ours; what no output needs travels with it."""
        source = copy_tiny(tmp_path / "source")
        (source / "tokenizer.model").write_bytes(b"\x00\xff sentencepiece")
        (source / "modeling_prismatic.py").write_text("raise SystemExit('code of a checkpoint was run')")
        load_tiny(source, dtype="bfloat16").save_pretrained(tmp_path / "ours")
        shutil.rmtree(source)
        ours = VLAPolicy.from_pretrained(tmp_path / "ours", dtype=None)
        assert ours.projector[0].weight.dtype == torch.bfloat16 and ours.value_head.mlp[0].weight.dtype == torch.float32
        export_openvla(ours, tmp_path / "out")
        export_openvla(load_tiny(dtype="bfloat16"), tmp_path / "direct")
        assert same_tensors(tmp_path / "direct", tmp_path / "out")
        assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"\x00\xff sentencepiece" and (tmp_path / "out" / "modeling_prismatic.py").is_file()
        assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
        (tmp_path / "ours" / "attachments" / "openvla.unused.safetensors").write_bytes(b"x")
        with pytest.raises(ValueError, match="missing or damaged"):
            VLAPolicy.from_pretrained(tmp_path / "ours")

    def test_new_statistics_become_an_entry(self, tmp_path):
        policy = load_tiny()
        policy.set_action_statistics(ActionStatistics((-0.5,) * 7, (0.25,) * 7, (True,) * 7))
        assert export_openvla(policy, tmp_path / "out", unnorm_key="push_cube") == "push_cube"
        assert load_openvla(str(tmp_path / "out"), "push_cube").actions.statistics == policy.actions.statistics
        assert load_openvla(str(tmp_path / "out"), "tiny_arm").actions.statistics == load_tiny().actions.statistics
        assert export_openvla(policy, tmp_path / "unnamed") == "stare_lit"

    def test_an_adapter_is_merged_first(self, tmp_path):
        policy = load_tiny()
        add_adapter(policy, LoraSettings(rank=2))
        with pytest.raises(ValueError, match="merge its adapters first"):
            export_openvla(policy, tmp_path / "out")
        export_openvla(merged_copy(policy), tmp_path / "out")
        assert same_tensors(FOLDER, tmp_path / "out")

    def test_refusals_leave_nothing_behind(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match="was not loaded from an OpenVLA checkpoint"):
            export_openvla(tiny(0), tmp_path / "out")
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "file").touch()
        with pytest.raises(ValueError, match="not empty"):
            export_openvla(load_tiny(), tmp_path / "taken")
        monkeypatch.setattr("stare_lit.models.vla.openvla.write_shards", lambda *args: (_ for _ in ()).throw(OSError("No space left on device")))
        with pytest.raises(OSError, match="No space"):
            export_openvla(load_tiny(), tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]

    def test_command_line(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(front, "_close_stdin", lambda: None)
        monkeypatch.setattr(front, "_set_environment", lambda: None)
        load_tiny().save_pretrained(tmp_path / "ours")

        def stare(*args):
            with pytest.raises(SystemExit) as end:
                front.main(["export", *map(str, args)])
            return end.value.code

        assert stare("--checkpoint", tmp_path / "ours", "--out", tmp_path / "out") == 0
        assert "unnorm_key='tiny_arm'" in capsys.readouterr().out
        assert same_tensors(FOLDER, tmp_path / "out")
        for bad, message in ((tmp_path / "absent", "no such folder"), (FOLDER, "model_type 'openvla'")):
            assert stare("--checkpoint", bad, "--out", tmp_path / "other") == 2
            error = capsys.readouterr().err
            assert message in error and error.count("\n") == 1
        assert stare("--checkpoint", tmp_path / "ours", "--out", tmp_path / "out") == 2
        assert "not empty" in capsys.readouterr().err
