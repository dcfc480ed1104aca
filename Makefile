# `make quickstart` and `make test` need only make and a Python >= 3.11: both make .venv first.

VENV   := .venv
PY     := $(VENV)/bin/python
# Tried in this order; the first that runs and can make a virtual environment is taken.
PYTHON ?= python3.13 python3.12 python3.11 python3 python python3.14
EXTRAS ?= test,dev
JOBS   ?= 2
# jax's CUDA plugin exists for Linux alone; elsewhere the tests that need it say so and are skipped.
GPU_COMPILER := $(if $(filter Linux,$(shell uname -s)),$(VENV)/gpu_compile/.installed)

.DEFAULT_GOAL := help
.PHONY: help setup fresh-venv quickstart test gpu-compile lint format benchmark

help:
	@echo 'make quickstart   train and evaluate on MovieLens-100K, in runs/quickstart'
	@echo 'make test         lint, check types, run the tests'
	@echo 'make gpu-compile  compile all kernels for A100, L4, H200 and B200, without a GPU'
	@echo 'make setup        make $(VENV) and install into it; the others do so when needed'
	@echo 'make lint         ruff and mypy alone'
	@echo 'make format       let ruff format and mend what it can'
	@echo 'make benchmark    measure throughput and attention on this machine'
	@echo
	@echo 'For a GPU: make setup EXTRAS=test,dev,cuda12   (or cuda13)'
	@echo 'To choose a Python: make setup PYTHON=/path/to/python'

setup: $(VENV)/.installed-$(EXTRAS)

quickstart: setup
	$(PY) -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

test: lint $(GPU_COMPILER)
	$(if $(GPU_COMPILER),GPU_COMPILE_REQUIRED=1) $(PY) -m pytest -n $(JOBS) --dist worksteal

gpu-compile: setup $(GPU_COMPILER)
	PYTHONPATH=tests $(PY) -m gpu_compile --jobs $(JOBS) $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

benchmark: setup
	$(PY) -m experiments.benchmark throughput --dataset=yelp
	$(PY) -m experiments.benchmark attention

# An environment whose Python no longer runs, or whose installation was cut short, is made anew.
WHOLE := $(shell test ! -e $(VENV)/.unfinished \
           && $(PY) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
           && echo whole)

$(VENV)/.installed-$(EXTRAS): pyproject.toml constraints.txt $(if $(WHOLE),,fresh-venv)
	@touch $(VENV)/.unfinished
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.$(EXTRAS:%=[%])'
	@mv $(VENV)/.unfinished $@

# The extra gpu-compile, 500 MB, in a folder apart. Beside the other packages it would have every
# program that imports jax complain that there is no CUDA.
$(VENV)/gpu_compile/.installed: constraints.txt $(if $(WHOLE),,fresh-venv) | setup
	@rm -rf $(@D)
	$(PY) -m pip install --quiet --constraint constraints.txt --target $(@D) \
	  jax-cuda12-plugin nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	@touch $@

# Candidates are run, not looked up: a pyenv shim is on the PATH even where its Python is not.
# Debian's Python may lack ensurepip; then virtualenv, or its own pip, puts pip in.
fresh-venv:
	@for python in $(PYTHON); do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  rm -rf $(VENV); \
	  { $$python -m venv $(VENV) || \
	    $$python -m virtualenv --clear $(VENV) || \
	    { $$python -m venv --clear --without-pip $(VENV) && \
	      $$python -m pip --python $(PY) install pip; }; } >/dev/null 2>&1 || continue; \
	  echo "$(VENV): $$($(PY) --version) of $$python"; \
	  exit 0; \
	done; \
	echo 'error: no Python >= 3.11 that can make a virtual environment among: $(PYTHON)' >&2; \
	echo 'On Debian and Ubuntu: apt install python3-venv. Or: make PYTHON=/path/to/python' >&2; \
	exit 1
