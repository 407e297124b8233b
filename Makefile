# `make train` and `make test` set up .venv on their first run; nothing else is needed.
#   make train ARGS="--help"                  options of the training script
#   make test ARGS="tests/test_x.py -k name"  a part of the tests
#   make test PYTHON=python3.12               the interpreter .venv is made from (3.10 to 3.13)
#   make bench ARGS="--workloads=sinusoid"    times and gradients beside PyTorch and JAX (Python 3.11 or newer)
#   make test-matrix                          quick tests on every Python, with the oldest and the newest TensorFlow

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet
OURS := tf_metagrad train tests benchmarks
PYTEST = $(PY) -m pytest -n $(WORKERS) --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help train test test-slow test-matrix bench format clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

train: $(VENV)/.project
	$(PY) train/train.py $(ARGS)

test: $(VENV)/.test
	$(PY) -m ruff check $(OURS)
	$(PY) -m ruff format --check $(OURS)
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/.test
	$(PYTEST) -m slow $(ARGS)

# Every environment is made in .matrix, one at a time, and removed again: 3 GB of disk, 2 to 10 minutes each.
test-matrix:
	$(PYTHON) tests/matrix.py $(ARGS)

bench: $(VENV)/.bench
	$(PY) benchmarks/compare_peers.py $(ARGS)

format: $(VENV)/.test
	$(PY) -m ruff check --fix --exit-zero .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) .matrix build dist *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -path ./runs -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# Each stamp is written last, so an interrupted installation is done again. --clear starts .venv, stamps included, afresh.
# setuptools and wheel come first: promise has no wheel and is built with these pinned versions.
$(VENV)/.packages: requirements.txt
	@command -v $(firstword $(PYTHON)) >/dev/null || { \
	  echo "'$(PYTHON)' was not found: install Python 3.10-3.13 and set PYTHON=... to it, as in: make test PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit("Found Python %d.%d (" % v + sys.executable + "), but tf_metagrad needs Python 3.10-3.13: set PYTHON=... to one, as in: make test PYTHON=python3.12")'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: its venv module is missing (on Debian or Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "[1/2] Making $(VENV) and installing TensorFlow and the other pinned packages: about 2 minutes, 2.8 GB of disk."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install -c requirements.txt setuptools wheel
	@$(PIP) install --no-build-isolation -r requirements.txt
	@touch $@

$(VENV)/.project: $(VENV)/.packages setup.cfg pyproject.toml
	@echo "[2/2] Installing tf_metagrad itself, editable."
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.packages requirements-test.txt | $(VENV)/.project
	@echo "Installing the test tools (pytest, hypothesis, ruff)."
	@$(PIP) install --no-build-isolation -r requirements-test.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.packages requirements-bench.txt | $(VENV)/.project
	@$(PY) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Found Python %d.%d, but the pinned JAX needs 3.11 or newer: set PYTHON=... to one." % sys.version_info[:2])'
	@echo "Installing the peers of the benchmarks (PyTorch for CPUs, JAX): 1 GB of disk."
	@$(PIP) install --no-build-isolation -r requirements-bench.txt
	@touch $@
