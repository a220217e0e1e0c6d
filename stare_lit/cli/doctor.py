"""``stare doctor``: checks this machine and prints the way out of each fault."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

GIB = 2**30
PACKAGES = ("torch", "lightning", "torchrl", "tensordict", "transformers", "mani_skill", "sapien", "jsonargparse", "wandb", "peft")
MIN_MEMORY = 6 * GIB  # the simulator in two processes beside the trainer
MIN_DISK = 4 * GIB  # demonstrations, preference episodes and checkpoints of one run of the pipeline
MIN_SHM = 256 * 2**20  # tensors that worker processes hand over
VULKAN_WAY_OUT = "scripts/setup_vulkan.sh installs it on Debian and Ubuntu (as root) and says what to install elsewhere; Mesa must be 23.2 or later"
Status = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the report. ``note`` is worth knowing and stops nothing; ``fail`` does, and ``way_out`` says what to do."""

    name: str
    status: Status
    detail: str
    way_out: str = ""


def doctor(tasks: list[str] | None = None, timeout: float = 120.0) -> int:
    """Check this machine: Python, packages, Vulkan, cameras, assets, memory. Each fault comes with its way out.

    Args:
        tasks: ManiSkill tasks whose assets and camera are checked; default PushCube-v1. Example: --tasks '[PushCube-v1, PutCarrotOnPlateInScene-v1]'.
        timeout: seconds that rendering one image may take.

    Returns:
        0 where everything required is there, 1 otherwise.
    """
    console = Console()
    faults = 0
    table = Table("check", "", "found", title="stare doctor", title_justify="left")
    colours = {"ok": "green", "note": "yellow", "fail": "red"}
    ways_out = []
    for check in _checks(["PushCube-v1"] if tasks is None else tasks, timeout):
        table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", check.detail)
        faults += check.status == "fail"
        if check.way_out:
            ways_out.append((check, colours[check.status]))
    console.print(table)
    for check, colour in ways_out:
        console.print(f"[{colour}]{check.name}[/]: {check.way_out}", soft_wrap=True)
    console.print(f"{faults} fault{'s' * (faults != 1)}" if faults else "all is there")
    return int(faults > 0)


def check_vulkan(timeout: float = 120.0) -> Check:
    """Whether SAPIEN can render here: the loader, a driver, and one real image, in a process of its own."""
    found, error = _probe("render", timeout=timeout)
    if error:
        drivers = [path.name for path in _driver_files()]
        return Check("Vulkan", "fail", f"{error} (drivers found: {', '.join(drivers) or 'none'})", VULKAN_WAY_OUT)
    if found["spread"] < 0.1:
        return Check("Vulkan", "fail", "an image was rendered, but it is blank", VULKAN_WAY_OUT)
    return Check("Vulkan", "ok", f"renders on {found['device']}")


def _checks(tasks: list[str], timeout: float) -> Iterator[Check]:
    yield _python()
    yield from _packages()
    yield _compute()
    yield from _space()
    vulkan = check_vulkan(timeout)
    yield vulkan
    for task in tasks:
        assets = _assets(task, timeout)
        yield assets
        if vulkan.status == assets.status == "ok":
            yield _camera(task, timeout)


def _python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")


def _packages() -> Iterator[Check]:
    tested = _tested_versions()
    for name in (*PACKAGES, "numpy", "opencv-python"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "fail", "not installed", "make setup")
            continue
        if name == "numpy" and int(version.split(".")[0]) >= 2:
            yield Check(name, "fail", version, "mplib (ManiSkill's planner) crashes under numpy 2: pip install 'numpy<2' 'opencv-python<4.12'")
        elif name in tested and version.split("+")[0] != tested[name]:
            yield Check(name, "note", f"{version} (tested with {tested[name]})", f"pip install '{name}=={tested[name]}' if something breaks")
        else:
            yield Check(name, "ok", version)


def _tested_versions() -> dict[str, str]:
    """Exact pins of ``constraints.txt``; empty where the package was installed without its repository."""
    path = Path(__file__).resolve().parents[2] / "constraints.txt"
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text(), re.MULTILINE)) if path.is_file() else {}


def _compute() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("compute", "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})")
    detail = f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
    if shutil.which("nvidia-smi"):
        return Check(
            "compute", "note", f"{detail}; there is an NVIDIA driver, but this torch does not see it", "pip install --force-reinstall torch, from a CUDA index"
        )
    return Check("compute", "ok", detail)


def _space() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory().available
    way_out = "fewer environments at once (num_envs, num_workers) and smaller images need less"
    yield _enough("memory", memory, MIN_MEMORY, "free", way_out)
    yield _enough("disk", shutil.disk_usage(".").free, MIN_DISK, f"free in {Path.cwd()}", "make room, or give --run_dir on another disk")
    if Path("/dev/shm").is_dir():
        yield _enough("shared memory", shutil.disk_usage("/dev/shm").free, MIN_SHM, "free in /dev/shm", "in a container: docker run --shm-size=2g")


def _enough(name: str, found: int, needed: int, where: str, way_out: str) -> Check:
    detail = f"{found / GIB:.1f} GiB {where}"
    return Check(name, "ok", detail) if found >= needed else Check(name, "note", f"{detail}, {needed / GIB:.2g} GiB advised", way_out)


def _assets(task: str, timeout: float) -> Check:
    found, error = _probe("assets", task, timeout=timeout)
    if error:
        return Check(f"{task} assets", "fail", error, "make setup, then stare doctor again")
    if not found["known"]:
        return Check(f"{task} assets", "fail", "ManiSkill knows no such task", "check the spelling, version included: PushCube-v1")
    if found["missing"]:
        commands = " && ".join(f"python -m mani_skill.utils.download_asset {asset} -y" for asset in found["missing"])
        return Check(
            f"{task} assets",
            "fail",
            f"missing in {found['folder']}: {', '.join(found['missing'])}",
            f"{commands}, or set MS_ASSET_DIR to the folder above data/",
        )
    return Check(f"{task} assets", "ok", "all on disk")


def _camera(task: str, timeout: float) -> Check:
    found, error = _probe("camera", task, timeout=timeout)
    if error:
        return Check(f"{task} camera", "fail", error, "STARE_DEBUG=1 stare doctor shows the traceback")
    if found["std"] < 1.0:
        return Check(f"{task} camera", "fail", f"the image is constant (standard deviation {found['std']:.2g} of 255)", VULKAN_WAY_OUT)
    return Check(f"{task} camera", "ok", f"image {found['shape']}, standard deviation {found['std']:.0f} of 255")


def _driver_files() -> list[Path]:
    folders = map(Path, ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"))
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]


def _probe(*arguments: str, timeout: float) -> tuple[dict[str, Any], str]:
    """Run a probe; returns what it found and an error message, one of them empty."""
    run = partial(subprocess.run, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        done = run([sys.executable, "-m", "stare_lit.cli.probes", *arguments], timeout=timeout)
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {timeout:.0f} s"
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1]), ""
    if os.environ.get("STARE_DEBUG", "0") not in ("", "0"):
        print(done.stderr, file=sys.stderr)
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return {}, lines[-1] if lines else f"it died with code {done.returncode}"
