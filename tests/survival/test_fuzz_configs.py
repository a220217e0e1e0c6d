"""Whatever stands in a configuration: it is taken, or refused with a message and exit code 2; no traceback, nothing hangs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_phases import CONFIGS

from stare_lit.cli import main as front

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**6), st.floats(allow_nan=True), st.text(max_size=8),
    st.lists(st.integers(-1, 3), max_size=3), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(["auto", "null", "[", "{}", "1e400", "os.system", "stare_lit.nothing", "lightning.Trainer", "\x00", "${HOME}", "/dev/null"]),
)  # fmt: skip


def leaves(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of everything in a configuration that is no container."""
    if isinstance(value, dict):
        return [found for key, entry in value.items() for found in leaves(entry, (*path, key))]
    if isinstance(value, list):
        return [found for index, entry in enumerate(value) for found in leaves(entry, (*path, index))]
    return [path]


def changed(config: Any, path: tuple, value: Any) -> Any:
    config = copy.deepcopy(config)
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return config


@pytest.mark.parametrize("name", ["sft", "sta_tpo", "sta_ppo", "ipi"])
def test_any_value_is_taken_or_refused_with_a_message(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(front, "_close_stdin", lambda: None)
    monkeypatch.setattr(front, "_set_environment", lambda: None)
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    command = "ipi" if name == "ipi" else "fit"

    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(path=st.sampled_from(leaves(config)), value=VALUES)
    def run(path: tuple, value: Any) -> None:
        Path("config.yaml").write_text(yaml.safe_dump(changed(config, path, value)))
        with pytest.raises(SystemExit) as exit_info:
            front.main([command, "--config", "config.yaml", "--print_config"])
        error = capfd.readouterr().err
        assert "Traceback" not in error
        assert exit_info.value.code == 0 or (exit_info.value.code == 2 and error.strip()), (path, value, error)

    run()


@pytest.mark.parametrize("content", ["", "[", "- 1\n- 2", "\x00", "a: &a [*a]", "model: 3", "!!python/object/apply:os.system ['touch executed']", "x" * 10_000])
def test_any_text_is_refused_with_a_message(content, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(front, "_close_stdin", lambda: None)
    monkeypatch.setattr(front, "_set_environment", lambda: None)
    Path("config.yaml").write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        front.main(["fit", "--config", "config.yaml"])
    error = capfd.readouterr().err
    assert exit_info.value.code == 2 and error.strip() and "Traceback" not in error
    assert not Path("executed").exists()
