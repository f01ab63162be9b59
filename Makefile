# `make run` and `make test` need nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
COMPOSE ?= docker compose
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: run bench federation compose container-test tutorials docs test lint format clean

STARS := HAMLET_HAMLET,OTHELLO_IAGO,MACBETH_MACBETH,KING_LEAR_KING_LEAR,HENRY_V_KING_HENRY_V,AS_YOU_LIKE_IT_ROSALIND

run: .venv/installed  ## fine-tune the embedded Dickens GRU on six of Shakespeare's characters, offline
	@mkdir -p runs
	$(BIN)/fedferry run shakespeare --client-ids $(STARS) --rounds 5 --max-batches 5 \
	  --logdir runs/dickens-`date +%Y%m%d-%H%M%S` --save runs/dickens-tuned.kerasmodel

federation: .venv/installed  ## the same job on a real SuperLink with three SuperNodes, on loopback
	$(BIN)/python deploy/loopback.py --nodes 3 task=shakespeare client-ids=$(STARS) rounds=3 max-batches=5 \
	  save=runs/federation-tuned.kerasmodel

compose:  ## the same job in containers; COMPOSE=podman-compose for another engine
	$(COMPOSE) up --build --exit-code-from run

container-test: .venv/installed  ## containers with TLS and authentication, and what happens when some are killed
	COMPOSE="$(COMPOSE)" $(BIN)/python deploy/container_test.py

DATA ?= $(FEDFERRY_DATA)/digits_by_writer_train.h5

bench: .venv/installed  ## rounds against a bare PyTorch loop, and TFF where TFF_PYTHON has it; DATA: TFF's EMNIST layout
	@mkdir -p runs
	$(BIN)/python benchmarks/peers.py --data $(DATA) --json runs/bench-peers.json
	$(BIN)/python benchmarks/overhead.py --json runs/bench-overhead.json
	$(BIN)/python benchmarks/scale.py --json runs/bench-scale.json
	$(BIN)/python benchmarks/ray_simulation.py --data $(DATA) --json runs/bench-ray.json

tutorials: .venv/tutorials  ## execute the notebooks of docs/tutorials, offline, into runs/tutorials
	$(BIN)/python docs/tutorials/execute.py

docs: .venv/docs  ## the documentation as a site in build/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

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

.venv/tutorials .venv/docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(@F)]'
	touch $@

clean:
	rm -rf .venv runs build .pytest_cache .mypy_cache .ruff_cache
