VENV := .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := snt backends tests benchmarks docs

.PHONY: install demo test check bench docs
install: $(STAMP)

# constraints.txt names the tested versions; torch comes first, so that nothing else chooses it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[all,dev]'
	touch $(STAMP)

demo: install
	$(BIN)/snt run recipes/quickstart.yaml

test: install
	$(BIN)/pytest

check: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

bench: install
	$(BIN)/python -m benchmarks

docs: install
	$(BIN)/python docs/generate.py
