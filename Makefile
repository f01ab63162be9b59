# `make run` and `make test` need nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: run test lint format clean

run: .venv/installed  ## fine-tune the embedded Dickens GRU on the embedded plays
	$(BIN)/fedferry run shakespeare --rounds 5 --cohort 8 --max-batches 5 --eval-batches 5 \
	  --logdir runs/dickens-`date +%Y%m%d-%H%M%S` --save runs/dickens-tuned.kerasmodel

test: .venv/installed
	KERAS_BACKEND=torch $(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[sample,dev]'
	touch $@

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
