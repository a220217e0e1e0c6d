#!/usr/bin/env bash
# Makes the virtual environment .venv and installs the project in it (editable, with its test tools), in the versions of constraints.txt.
# Called by `make setup`, which skips it while nothing it depends on has changed. PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$1" >&2; }
supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

venv=.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

if ! { [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
  for python in "${PYTHON:-}" python3.11 python3.12 python3; do
    [ -n "$python" ] && command -v "$python" >/dev/null && supported "$python" && break
    [ -n "$python" ] && [ "$python" = "${PYTHON:-}" ] && { say "PYTHON=$python is not Python 3.11 or 3.12"; exit 1; }
    python=
  done
  [ -n "$python" ] || { say 'no Python 3.11 or 3.12 was found (mani_skill has wheels for these). Install one, or name it: make setup PYTHON=/path/to/python3.11'; exit 1; }
  say "making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv" || { say 'python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv'; exit 1; }
fi
pip=("$venv/bin/python" -m pip install -qq)

# Without an NVIDIA GPU pip's own choice of torch would bring gigabytes of CUDA packages: take the CPU build where its index answers.
# pip retries an index that does not answer for minutes, so ask once, briefly, first.
if ! command -v nvidia-smi >/dev/null && ! "$venv/bin/python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
  cpu_index=https://download.pytorch.org/whl/cpu
  if "$venv/bin/python" -c "import urllib.request as u; u.urlopen('$cpu_index/torch/', timeout=10)" 2>/dev/null; then
    say 'no NVIDIA GPU: installing the CPU build of torch'
    "${pip[@]}" -c constraints.txt 'torch==2.13.0' --extra-index-url "$cpu_index"
  else
    say "no NVIDIA GPU, and $cpu_index does not answer: installing torch as pip finds it"
    "${pip[@]}" -c constraints.txt 'torch==2.13.0'
  fi
fi

say 'installing the project and its dependencies (a few minutes the first time)'
"${pip[@]}" -c constraints.txt -e '.[dev]'
say "ready: $("$venv/bin/stare" --version)"
