"""The house rules that a machine can hold: layers, keys, file sizes, packaging."""

import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from torchrl.data import vla

from stare_lit import keys

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stare_lit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 250
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_imports_only_go_down():
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed (make setup)")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("theirs", sorted(name for name in dir(vla) if name.endswith("_KEY")))
def test_keys_mirror_torchrl(theirs):
    assert getattr(keys, theirs.removesuffix("_KEY")) == getattr(vla, theirs)


def test_action_keys_are_fields_of_torchrls_container():
    fields = {field.name for field in dataclasses.fields(vla.VLAAction)}
    assert {key[1] for key in (keys.ACTION_TOKENS, keys.LOG_PROBS, keys.ACTION_CHUNK)} <= fields


def test_files_stay_short():
    long = {str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > MAX_LINES}
    assert not long, f"over {MAX_LINES} lines, so a second idea moved in: {long}"


def test_no_utils_and_no_base_classes_of_ours():
    assert not [path for path in SOURCES if path.stem in ("utils", "helpers", "common", "misc")]
    bases = [f"{path.relative_to(ROOT)}: {name}" for path in SOURCES for name in re.findall(r"^class (Base[A-Z]\w*)", path.read_text(), re.MULTILINE)]
    assert not bases


def test_every_package_and_module_says_what_it_is():
    silent = [str(path.relative_to(ROOT)) for path in SOURCES if not path.read_text().lstrip().startswith('"""')]
    assert not silent, f"no module docstring: {silent}"
    assert not [str(folder) for folder in {path.parent for path in SOURCES} if not (folder / "__init__.py").is_file()]


def test_layers_list_every_part_of_the_package():
    contract = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    listed = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    present = {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert listed == present


def test_constraints_pin_every_dependency_but_torch():
    pinned = {re.split(r"[=<>]", line)[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")}
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[=<> ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= pinned, f"missing in constraints.txt: {sorted(names - pinned)}"
    torch_lines = re.findall(r"^torch[=<>].*", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch_lines == [next(d for d in wanted if d.startswith("torch>"))]  # a range: CUDA users get a matching build
