# make demo: from nothing to a trained, evaluated model.   make test: the whole test suite.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNS := demo/runs

.PHONY: demo test lint clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m preprocessing demo
	$(BIN)/torchrun --nproc_per_node=2 launch/train.py demo-cnn-mix --out $(RUNS)/cnn-mix
	$(BIN)/torchrun --nproc_per_node=2 launch/train.py demo-ae-mix --out $(RUNS)/ae-mix --start-from $(RUNS)/cnn-mix
	$(BIN)/torchrun --nproc_per_node=2 launch/evaluate.py $(RUNS)/cnn-mix
	$(BIN)/torchrun --nproc_per_node=2 launch/evaluate.py $(RUNS)/ae-mix

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy harps_dist preprocessing launch

clean:
	rm -rf $(VENV) demo runs
