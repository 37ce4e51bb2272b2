# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv when there is none,
# installs the pinned versions once, and afterwards runs without the network.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint types imports docs bench dist format clean

help:
	@echo "make demo    distil a small student from a large teacher on scenes of handwritten digits"
	@echo "make test    run the tests and every example in a docstring"
	@echo "make bench   time the losses beside the naive form on this machine"
	@echo "make docs    build the documentation into docs/_build/html"
	@echo "make dist    build the wheel and the sdist into dist, the same bytes from the same source, and check them"
	@echo "make lint types imports format clean"

# An extra is installed again only when pyproject.toml or constraints.txt change.
$(VENV)/pip.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt hatchling editables
	@touch $@

$(VENV)/%.stamp: pyproject.toml constraints.txt $(VENV)/pip.stamp
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".[$*]"
	@touch $@

demo: $(VENV)/examples.stamp
	$(BIN)/python -m examples.distill $(ARGS)

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --numprocesses $(WORKERS) $(ARGS)

bench: $(VENV)/examples.stamp
	$(BIN)/python -m benchmarks.run $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

imports: $(VENV)/dev.stamp
	$(BIN)/lint-imports

docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(BIN)/python -m sphinx -W -b doctest docs docs/_build/doctest

dist: $(VENV)/dev.stamp
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -c "import hashlib, pathlib; [print(hashlib.sha256(file.read_bytes()).hexdigest(), file) for file in sorted(pathlib.Path('dist').iterdir())]"

clean:
	rm -rf $(VENV) docs/_build build dist
