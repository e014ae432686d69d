# make demo: from nothing to a trained, evaluated model.   make test: the test suite.   make test-slow: what takes longer.
# make test-processors: tests on made-up releases as a lesser processor computes, by OpenBLAS's kernels; `make test` ran
# them by this one's.   make lint: ruff and mypy.   make gpu: all that a machine with a GPU can tell, with the Python and
# torch that it has (PYTHON=…), other packages from wheels in a folder (WHEELS=…), into one JSON file or a folder (OUT=…).
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNS := demo/runs
TORCHRUN := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=2

SITE := .gpu-site
OUT ?= launch/results

.PHONY: demo test test-slow test-processors lint gpu clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m preprocessing demo
	$(TORCHRUN) launch/train.py demo-cnn-mix --out $(RUNS)/demo-cnn-mix
	$(TORCHRUN) launch/train.py demo-ae-phys --out $(RUNS)/demo-ae-phys
	$(TORCHRUN) launch/evaluate.py $(RUNS)/demo-cnn-mix
	$(TORCHRUN) launch/evaluate.py $(RUNS)/demo-ae-phys --refine labels

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --ignore tests/slurm
	$(BIN)/python -m pytest -m slow tests/slurm

test-processors: $(INSTALLED)
	core=$$($(BIN)/python -m tests.processors) && echo "made-up releases as $$core computes" && \
	OPENBLAS_CORETYPE=$$core $(BIN)/python -m pytest -m "made_up and not slow" -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy harps_dist preprocessing launch

gpu:
	$(if $(WHEELS),$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target $(SITE) $(WHEELS)/*.whl)
	PYTHONUNBUFFERED=1 PYTHONPATH=$(abspath $(SITE)):$(CURDIR) $(PYTHON) -m tests.gpu.measure --out $(OUT)

clean:
	rm -rf $(VENV) $(SITE) demo runs
