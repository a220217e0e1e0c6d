"""Policies on disk: exact round trips, clear errors, nothing unpickled."""

import json
import pickle

import pytest
import torch

from stare_lit import keys
from stare_lit.models.vla import ActionStatistics, VLAConfig, VLAPolicy
from stare_lit.models.vla.presets import openvla_7b_config


@pytest.fixture
def saved(make_policy, tmp_path):
    policy = make_policy(value_signals=("grasped",))
    policy.set_action_statistics(ActionStatistics((-0.1,) * 7, (0.7,) * 6 + (-0.1,), (True,) * 7))
    policy.save_pretrained(tmp_path / "policy")
    return policy, tmp_path / "policy"


def test_round_trip_is_exact(saved, observe):
    policy, folder = saved
    loaded = VLAPolicy.from_pretrained(folder)
    assert loaded.config == policy.config and loaded.actions.statistics == policy.actions.statistics
    assert loaded.actions.active_dims == (0, 1, 2, 3, 4, 5)
    ours, theirs = policy.act(observe(3), temperature=0.0, value=True), loaded.act(observe(3), temperature=0.0, value=True)
    for key in (keys.LOG_PROBS, keys.ACTION_CHUNK, keys.STATE_VALUE):
        assert torch.equal(ours[key], theirs[key])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    loaded.save_pretrained(folder)  # over itself
    assert VLAPolicy.from_pretrained(folder).config == policy.config


def test_half_precision_halves_the_file_and_keeps_the_statistics(saved, tmp_path):
    policy, folder = saved
    policy.save_pretrained(tmp_path / "half", dtype="float16")
    loaded = VLAPolicy.from_pretrained(tmp_path / "half")
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
    assert loaded.actions.statistics == policy.actions.statistics
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_another_critic_on_the_same_policy(saved, observe, tmp_path):
    policy, folder = saved
    assert torch.equal(VLAPolicy.from_pretrained(folder, value_signals=["grasped"]).value_head.mlp[0].weight, policy.value_head.mlp[0].weight)
    blind = VLAPolicy.from_pretrained(folder, value_signals=[])
    blind.save_pretrained(tmp_path / "blind")
    seen = observe(3).exclude(keys.SIGNALS)
    ours, theirs = policy.act(observe(3), temperature=0.0), VLAPolicy.from_pretrained(tmp_path / "blind").act(seen, temperature=0.0, value=True)
    assert torch.equal(ours[keys.LOG_PROBS], theirs[keys.LOG_PROBS]) and (theirs[keys.STATE_VALUE] == 0).all() and blind.origin == folder


def test_config_goes_through_json():
    config = openvla_7b_config()
    assert VLAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="does not fit this version"):
        VLAConfig.from_dict({**config.to_dict(), "unheard_of": 1})


def test_missing_and_foreign_folders(saved, tmp_path):
    _, folder = saved
    with pytest.raises(ValueError, match="no such folder"):
        VLAPolicy.from_pretrained(tmp_path / "absent")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match="pickled checkpoints are never read"):
        VLAPolicy.from_pretrained(tmp_path / "pickled")
    (folder / "config.json").write_text(json.dumps({"model_type": "openvla"}))
    with pytest.raises(ValueError, match="model_type 'openvla'"):
        VLAPolicy.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        VLAPolicy.from_pretrained(folder)


class _Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def _resign(folder):
    import hashlib

    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def test_damaged_weights(saved):
    _, folder = saved
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        VLAPolicy.from_pretrained(folder)
    weights.write_bytes(pickle.dumps(_Bomb()))
    _resign(folder)
    with pytest.raises(ValueError, match="no safetensors file"):
        VLAPolicy.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        VLAPolicy.from_pretrained(folder)


def test_weights_of_another_model(saved):
    from safetensors.torch import save_file

    _, folder = saved
    save_file({"a": torch.zeros(3)}, folder / "model.safetensors")
    _resign(folder)
    with pytest.raises(ValueError, match=r"missing .*left over \['a'\]"):
        VLAPolicy.from_pretrained(folder)


def test_unknown_dtype(saved, tmp_path):
    with pytest.raises(ValueError, match="float64"):
        saved[0].save_pretrained(tmp_path, dtype="float64")
