# Every target works on a machine that has only Python (3.10 or newer) and make: the first one called makes .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test check bench install clean

demo: install
	$(BIN)/sbc demo

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m integration_tests.benchmarks.run $(CASE)

install: $(STAMP)

# One pip call, so that torch and torchvision (a dependency of norse) are resolved to a matching pair.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,demo,torch-pruning]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
