# `make quickstart` and `make test` need only make and a Python >= 3.11: both make .venv first.

VENV   := .venv
PY     := $(VENV)/bin/python
# Tried in this order; the first that runs and can make a virtual environment is taken.
PYTHON ?= python3.13 python3.12 python3.11 python3 python python3.14
EXTRAS ?= test,dev
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup fresh-venv quickstart test lint format benchmark

help:
	@echo 'make quickstart   train and evaluate on MovieLens-100K, in runs/quickstart'
	@echo 'make test         lint, check types, run the tests'
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

test: lint
	$(PY) -m pytest -n $(JOBS)

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
