# make help lists the targets. Everything runs inside .venv, without a prompt and without an account; settings below can be given on the command line.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow lint clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG ?= configs/sta_ppo.yaml
ARGS ?=
PYTEST_ARGS ?=

export PYTHONUNBUFFERED := 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo '  settings: make train CONFIG=configs/sft.yaml ARGS="--trainer.max_steps=10"; make test PYTEST_ARGS="-k stages"; PYTHON=python3.11'

$(STAMP): pyproject.toml constraints.txt scripts/setup_venv.sh
	@scripts/setup_venv.sh </dev/null
	@touch $@

setup: $(STAMP)  ## virtual environment, packages and a Vulkan driver; changes nothing when all is there
	@scripts/setup_vulkan.sh </dev/null

train: setup  ## the main job: stage-aware PPO on PushCube-v1 from the shipped policy (CONFIG=..., ARGS=...)
	@$(BIN)/stare fit --config $(CONFIG) $(ARGS) </dev/null

test: setup  ## the tests that need no GPU and no network (PYTEST_ARGS=...)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS) </dev/null

test-slow: setup  ## the tests marked slow (learning, all tasks)
	@$(BIN)/python -m pytest -m 'slow and not gpu' --timeout 3600 $(PYTEST_ARGS) </dev/null

lint: setup  ## ruff, import layers, types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy

clean:  ## remove caches and build files; runs/, data/ and .venv stay
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
