"""Shape checks for the pure layers, one torch thread, and the optional shared test data."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["stare_lit.objectives", "stare_lit.stages"], "beartype.beartype")
torch.set_num_threads(1)
settings.register_profile("stare", deadline=None)  # a busy machine is no failure
settings.load_profile("stare")

SHARED = Path(os.environ.get("STARE_SHARED") or Path(__file__).parents[1].parent / "shared")
if (SHARED / "maniskill_assets").is_dir():  # before ManiSkill is imported, which reads it once
    os.environ.setdefault("MS_ASSET_DIR", str(SHARED / "maniskill_assets"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: a file is one worker's, and at the end all others would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_every_task.py")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Test data kept beside the repository (``$STARE_SHARED``, else ``../shared``); skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared test data: {SHARED} is absent; set STARE_SHARED to its folder")
    return SHARED


@pytest.fixture(scope="session")
def vulkan() -> Iterator[None]:
    """Skips where SAPIEN finds nothing to render with: ManiSkill then makes no scene at all, with or without a camera.

    Keeps a renderer alive, for when the last one goes the next compiles its shaders again (seconds).
    """
    import mani_skill.envs  # noqa: F401  the rest of what is imported
    import sapien

    from stare_lit.envs.simulator import render_device

    gc.collect()
    gc.freeze()  # the simulator collects garbage at each rebuild, a third of a second over all that is imported; that never is any
    try:
        renderer = sapien.render.RenderSystem(sapien.Device(render_device()))
    except RuntimeError as error:
        pytest.skip(f"ManiSkill needs a Vulkan device: {error}; stare doctor says what to install")
    yield
    del renderer


@pytest.fixture(scope="session")
def simulated(vulkan: None) -> Callable[[str], str]:
    """``simulated(task)`` is the task; skips where its simulator cannot run: no Vulkan device, or assets that are not on disk."""
    from stare_lit.envs.simulator import missing_assets

    def check(task: str) -> str:
        if missing := missing_assets(task):
            pytest.skip(f"{task} needs the assets {missing}; set MS_ASSET_DIR, or STARE_SHARED to a folder with maniskill_assets")
        return task

    return check


@pytest.fixture
def assert_parses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[[list[str]], None]:
    """``assert_parses(words)``: ``stare`` accepts these words, as it would from the project's folder, before anything is made of them."""
    from stare_lit.cli.main import main

    monkeypatch.chdir(Path(__file__).parents[1])

    def check(words: list[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--print_config"])
        assert ended.value.code == 0, (words, capsys.readouterr().err[-2000:])

    return check
