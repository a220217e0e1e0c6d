"""Whether this machine can render, asked once."""

import pytest

from stare_lit.cli.doctor import check_vulkan


@pytest.fixture(scope="session")
def vulkan() -> None:
    """Skips where SAPIEN finds nothing to render with."""
    found = check_vulkan()
    if found.status != "ok":
        pytest.skip(f"cameras need a Vulkan device: {found.detail}; {found.way_out}")
