# Needs make and Python 3.11 or newer; everything else goes into .venv, which `make clean` removes.
#
#   make PYTHON=/opt/python3.12/bin/python3 install    another Python than the one found
#   make ARGS="-k causal" test                         more arguments for pytest
#   make PROFILE=thorough test                         more examples a law: quick, default, thorough
#
# pip's own settings count (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, ...): without one that leads to torch's CPU builds, pip
# takes the CUDA build on Linux, several gigabytes.

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PROFILE ?= quick
FOR ?= 3.12
REPORTS ?= reports
ARGS ?=

# A name on the path is not enough (pyenv leaves shims of Pythons that are not chosen): each one is started.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help install report gpu-report gpu-test gpu-tiles unpacked wheels test lint imports docs format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(VENV)/installed-all  ## .venv with everything that report, test and lint need

report: $(VENV)/installed-run  ## verify and time every implementation that runs here; write reports/<device>/
	$(BIN)/qkverify report --run --profile $(PROFILE)

# Needs a Python with a CUDA build of torch, and fetches nothing. What that Python lacks of our few dependencies comes as a
# folder of wheels: `make wheels` makes one where there is a package index, `make gpu-report WHEELS=wheels` uses it where
# there is none. A wheel is a zip file, so it is unpacked beside the build, and nothing is installed.
#
# Where the machine is lent for a while: `make gpu-report LIMIT=540` ends after so many seconds. What was done by then is kept and
# drawn, in the folder REPORTS, and the same command goes on with it. (`timeout make gpu-report` would end make alone.)
gpu-report: unpacked  ## the same on the GPU alone, with the Python at hand; goes on where a killed run ended
	PYTHONPATH=src:build/unpacked:$$PYTHONPATH $(if $(LIMIT),timeout --preserve-status $(LIMIT)) \
	    $(PYTHON) -m qkverify.cli report --run --resume --device cuda \
	    --profile $(PROFILE) --budget 150 --reports $(REPORTS)

gpu-test: unpacked  ## the tests of the suite that need a GPU, likewise
	PYTHONPATH=src:build/unpacked:$$PYTHONPATH $(PYTHON) -m pytest -m cuda -rs tests $(ARGS)

gpu-tiles: unpacked  ## on a Hopper GPU, in six minutes: the best tiles of triton_flash; goes on where a killed run ended
	PYTHONPATH=src:build/unpacked:$$PYTHONPATH $(PYTHON) -m qkverify.implementations.triton_flash.tuning $(ARGS)

unpacked:
	@rm -rf build/unpacked && mkdir -p build/unpacked
	@for wheel in $(if $(WHEELS),$(WHEELS)/*.whl); do \
	    $(PYTHON) -m zipfile -e "$$wheel" build/unpacked || exit 2; done

# For 64-bit Linux and the Python named: pip takes the newest build that one of these platforms has. With --no-deps, because
# only what is named here is missing beside torch, hypothesis and pytest; more names: make wheels NAMES="typer rich".
wheels:  ## fetch what a GPU machine without a package index may lack: make wheels FOR=3.12, then copy the folder
	$(PYTHON) -m pip download --no-deps --only-binary=:all: --python-version $(FOR) --implementation cp \
	    $(addprefix --platform manylinux,_2_28_x86_64 _2_17_x86_64 2014_x86_64 _2_12_x86_64 2010_x86_64) \
	    -c constraints.txt -d wheels msgspec ml_dtypes jinja2 markupsafe nvidia-ml-py $(NAMES)

test: export OMP_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
test: export MKL_NUM_THREADS = 1
test: $(VENV)/installed-all  ## every test and every law
	$(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadgroup --benchmark-disable \
	    --hypothesis-profile=$(PROFILE) $(ARGS)

lint: $(VENV)/installed-all imports  ## ruff, its formatter, mypy, the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/typing/qkverify && touch $(VENV)/typing/qkverify/__init__.py
	ln -sfn ../../../reference $(VENV)/typing/qkverify/reference
	$(BIN)/mypy

# The four folders are packages of qkverify once it is installed; import-linter sees them so through links.
imports:
	@rm -rf build/house && mkdir -p build/house/qkverify
	@ln -s $(CURDIR)/src/qkverify/* $(addprefix $(CURDIR)/,reference implementations properties benchmarks) build/house/qkverify/
	PYTHONPATH=build/house $(BIN)/lint-imports --no-cache

# mkdocs-material advertises its successor at every start; that is no warning of ours.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/installed-all  ## the documentation as a site in build/site; fetches nothing, a warning is an error
	$(BIN)/mkdocs build

format: $(VENV)/installed-all  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, builds and caches; counterexamples and reports stay
	rm -rf $(VENV) build dist .benchmarks .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per finished step: an interrupted one is done again, a finished one is not repeated.
$(VENV)/made:
	@test -n "$(PYTHON)" || { echo "qkverify needs Python 3.11 or newer, and none of python3.13, python3.12, python3.11," \
	    "python3 is one. Where it is elsewhere: make PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "qkverify needs Python 3.11 or newer; $(PYTHON) is not."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: its modules" \
	    "venv and ensurepip are missing. On Debian and Ubuntu: apt install python3-venv"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/installed-run: pyproject.toml constraints.txt | $(VENV)/made
	$(BIN)/python -m pip install -c constraints.txt -e '.[torch,triton,report,models]'
	@touch $@

$(VENV)/installed-all: $(VENV)/installed-run
	$(BIN)/python -m pip install -c constraints.txt -e '.[torch,triton,report,models,jax,dev]'
	@touch $@
