# Each target works as the first command ever given: it makes the environment if it is not there.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONPATH :=

.PHONY: env repro test ui check lint clean-state

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "Making the environment in $(VENV): torch, transformers, trl, prefect, dvc, mlflow, polars (about 1.5 GB, a few minutes)"
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH; install Python 3.11 or say make PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	@echo "  torch is there; now the rest"
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true  # unpacked from an archive
	@touch $(READY)
	@echo "Environment ready; 'source $(VENV)/bin/activate' puts dvc, python and mlflow on your PATH"

repro: env  ## base model, three iterations, report
	@python -m flows.check
	@dvc repro
	-@python -m flows.track  # MLflow may be out of reach: the artifacts are there all the same
	@python -m flows.summary

test: env lint  ## the whole test suite
	@python -m pytest

lint: env
	@ruff format --check --quiet . && ruff check --quiet . && mypy

ui: env  ## MLflow on 127.0.0.1
	@python -m flows.ui

check: env
	@python -m flows.check

clean-state:  ## forget scratch, Prefect and MLflow state; artifacts stay
	@rm -rf .autodidact
