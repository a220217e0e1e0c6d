"""Shape checks for the pure layers, one torch thread, and the optional shared test data."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["stare_lit.objectives", "stare_lit.stages"], "beartype.beartype")
torch.set_num_threads(1)
settings.register_profile("stare", deadline=None)  # a busy machine is no failure
settings.load_profile("stare")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Test data kept beside the repository (``$STARE_SHARED``, else ``../shared``); skips where there is none."""
    folder = Path(os.environ.get("STARE_SHARED") or Path(__file__).parents[1].parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"needs the shared test data: {folder} is absent; set STARE_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def vulkan() -> Iterator[None]:
    """Skips where SAPIEN finds nothing to render with: ManiSkill then makes no scene at all, with or without a camera.

    Keeps a renderer alive, for when the last one goes the next compiles its shaders again (seconds).
    """
    import sapien

    try:
        renderer = sapien.render.RenderSystem(sapien.Device("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        pytest.skip(f"ManiSkill needs a Vulkan device: {error}; stare doctor says what to install")
    yield
    del renderer
