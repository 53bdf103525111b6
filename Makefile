# Everything goes through the environment that `make setup` makes from the hashed lock.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?=
JOBS ?= 2
WORKERS ?= 2
RUNNER ?= local
ARGS ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup check test oracles smoke reproduce paper pictures lock wheel clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## install the locked environment into .venv (CPU or CUDA, as the machine has)
	@bash docker/install-env.sh $(VENV)

$(BIN)/cdbench:
	@echo "make: $(BIN)/cdbench is not there; run 'make setup' first" >&2; exit 4

check: $(BIN)/cdbench  ## lint and types; repairs nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(BIN)/cdbench  ## the test suite
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

oracles: $(BIN)/cdbench  ## hold circuits against TransformerLens and pyvene, installed into .oracles for it
	$(BIN)/python -m pip install --quiet --target .oracles --upgrade --no-deps --require-hashes -r tests/oracles.txt
	PYTHONPATH=.oracles $(BIN)/python -c 'import transformer_lens.model_bridge, pyvene'  # without one, its tests would be skipped
	PYTHONPATH=.oracles $(BIN)/python -m pytest tests/test_circuit_oracles.py

smoke: $(BIN)/cdbench  ## the whole flow, small, in about two minutes (its numbers mean nothing)
	$(BIN)/cdbench reproduce paper_a failed_run --profile smoke --jobs $(JOBS) --runner $(RUNNER) $(ARGS)

reproduce: $(BIN)/cdbench  ## the papers' Table 1 and the failed-run study with the tiny pair, on the CPU
	$(BIN)/cdbench reproduce paper_a failed_run --jobs $(JOBS) --runner $(RUNNER) $(ARGS)

paper: $(BIN)/cdbench  ## the same under the paper profile: Llama-3-8B -> Llama-3.2-1B, one GPU
	$(BIN)/cdbench reproduce paper_a failed_run --profile paper --jobs 1 --runner $(RUNNER) $(ARGS)

pictures: $(BIN)/cdbench  ## draw the pictures of docs/ anew
	$(BIN)/python docs/draw_cka_bias.py

lock:  ## write the hashed locks anew from pyproject.toml (needs uv)
	bash docker/lock.sh

wheel: $(BIN)/cdbench  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove caches and builds; leaves runs/ and .venv alone
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
