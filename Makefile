# make demo   set everything up and run the whole of drift on the built-in model
# make test   set everything up and run every check
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: demo test check format lint types tests quick picture campaign mutants strace clean

demo: $(STAMP)
	$(BIN)/drift demo

test: $(DEV_STAMP) check tests

check: lint types

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV_STAMP)
	$(BIN)/mypy

tests: $(DEV_STAMP) strace
	$(BIN)/python -m pytest --cov --cov-report=term

# What one types while working: no coverage, stop at the first failure.
quick: $(DEV_STAMP)
	$(BIN)/python -m pytest -x -q

# The whole crash campaign: every fault that the tests inject a part of. Writes its counts into docs/reliability.md; some minutes.
campaign: $(DEV_STAMP) strace
	PYTHONPATH=tests $(BIN)/python -m campaign --write

# Breaks each promise in a copy of the code on purpose and sees that its named test fails.
mutants: $(DEV_STAMP) strace
	PYTHONPATH=tests $(BIN)/python -m campaign.mutants

# Injects faults into system calls. Tests that need it are skipped, and say so, where it is not there and cannot be had.
strace:
	@command -v strace >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y strace >/dev/null; } \
	  || echo "strace is not installed: tests of faults in system calls will be skipped"

# The README's picture, from the demo's own run.
picture: $(STAMP)
	$(BIN)/drift demo --store build/picture
	$(BIN)/drift plot --store build/picture --output images/readme-demo.png

format: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(DEV_STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(STAMP)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
