# Two commands do everything on a machine with Python 3.11 to 3.13: `make demo` and `make test`.
#
#   make demo                          train on synthetic data
#   make demo DATA=path/to/mosi.pkl    train on a file in MMSA's layout
#   make demo ARGS="--seeds 1"         with options of examples/experiments/seeds.py
#   make experiments                   all experiments, small and on synthetic data, in minutes
#   make experiments DATA=mosi.pkl     the same in full, in up to 90 minutes on two cores
#                                      for MOSI; the same command goes on where it was cut short
#
# On Linux, PyPI's PyTorch brings CUDA (several GB). For the CPU build:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
ARGS ?=
PIP_FLAGS ?=
# What `make matrix` runs: a Python and a resolution of uv's each.
RUNS ?= 3.11:highest 3.12:highest 3.13:highest 3.11:lowest-direct
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt $(PIP_FLAGS)

# The tests start hundreds of processes: what one has compiled of PyTorch the others read.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo experiments setup test lint types docs matrix extras check clean

demo: $(VENV)/.installed
	$(BIN)/python examples/experiments/seeds.py $(if $(DATA),--data "$(DATA)") $(ARGS)

# Without DATA, a test that all of them run: two seeds and two epochs show no effect.
OUT := runs/experiments/$(if $(DATA),$(basename $(notdir $(DATA))),small)
WORLD := runs/experiments/world
QUICK := --steps 26 --width 16
FULL := --data "$(DATA)" --patience 200 $(ARGS)
# For many rows: the averaged weights follow sooner.
QUICKER := --steps 500 --warmup 20 --average 0.98
SMALL := --data $(WORLD) $(QUICK) $(ARGS)
experiments: $(VENV)/.installed
	$(if $(DATA),,$(BIN)/python examples/experiments/world.py $(WORLD))
	$(BIN)/python examples/experiments/ablation.py --out $(OUT)/ablation --jobs 2 $(if $(DATA),$(QUICKER) $(FULL),$(SMALL) --seeds 2)
	$(BIN)/python examples/experiments/comparison.py --out $(OUT)/comparison --jobs 2 $(if $(DATA),--steps 800 --trials 3 $(FULL),$(SMALL) --seeds 2 --trials 1)
	$(BIN)/python examples/experiments/missing.py --out $(OUT)/missing --data "$(or $(DATA),$(WORLD))" $$(cat $(OUT)/comparison/chosen.txt)
	$(BIN)/python examples/experiments/tune.py --out $(OUT)/tune $(if $(DATA),--steps 600 --trials 8 $(FULL),$(SMALL) --trials 4)

setup: $(VENV)/.developed

# The tests and the examples in the docstrings, with types and shapes checked at every call.
test: $(VENV)/.developed
	$(BIN)/python -m pytest -n auto --dist worksteal --jaxtyping-packages=tdmer,tests.check --doctest-modules tdmer tests

lint: $(VENV)/.developed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.developed
	$(BIN)/mypy

docs: $(VENV)/.developed
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html

# The wheel in fresh environments without constraints. uv fetches the Pythons that are missing.
matrix: $(VENV)/.developed
	PATH="$$PWD/$(BIN):$$PATH" .ci/versions $(RUNS)

# Each extra alone, on each Python; not part of the gate.
extras: $(VENV)/.developed
	PATH="$$PWD/$(BIN):$$PATH" .ci/extras 3.11 3.12 3.13

check: test lint types docs

clean:
	rm -rf $(VENV) build dist docs/_build runs *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.cfg constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[examples]"
	touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(PIP) "pip>=25.1"
	$(PIP) --group dev
	touch $@
