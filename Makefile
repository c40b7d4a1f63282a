# make demo · make test · make bench · make lint · make docs · make train-digits · make train-text · make clean
#
# Everything runs in .venv, made from PYTHON (3.11 or newer). The stamp appears only after a complete
# installation, so a second `make` installs nothing and a broken one starts over.

PYTHON ?= python3
# Index that serves the torch build you want (for CPU-only builds see README.md, "Two commands"). Empty: pip's default.
TORCH_INDEX_URL ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test bench lint docs format clean train-digits train-text

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1 \t\2/p' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv with everything

$(STAMP): pyproject.toml solvers/pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgeopt needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch -c constraints.txt $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
	$(PIP) install --quiet -c constraints.txt -e ./solvers -e '.[all]'
	@touch $@

demo: $(STAMP)  ## measure this machine, plan an LLM and a diffusion model, run both, compare
	$(BIN)/python examples/demo.py build/demo

# Tests that start processes or networks measure time: they run alone. Code 5: the arguments select none of a half.
test: $(STAMP)  ## the whole test suite (skips are listed with their reason)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --benchmark-disable \
		-m "not processes and not root" $(PYTEST_ARGS) || [ $$? -eq 5 ]
	$(BIN)/python -m pytest --benchmark-disable -m "processes or root" $(PYTEST_ARGS) || [ $$? -eq 5 ]

bench: $(STAMP)  ## timings; writes docs/measurements/solvers.md
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only $(PYTEST_ARGS)
	$(BIN)/python tests/benchmarks/solvers.py --write docs/measurements/solvers.md

train-digits: $(STAMP)  ## train and measure the small denoisers anew (25 minutes on one core)
	OMP_NUM_THREADS=1 $(BIN)/python -m edgeopt.training.digits --profiles profiles/models

train-text: $(STAMP)  ## train the small language models anew and measure what they take of drafts (minutes on one core)
	OMP_NUM_THREADS=1 $(BIN)/python -m edgeopt.training.text --profile profiles/models/text.yaml

lint: $(STAMP)  ## style, types of the solvers, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)  ## build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what builds and runs leave behind, and .venv
	rm -rf $(VENV) build dist site solvers/build solvers/dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache .benchmarks
	find edgeopt solvers tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
