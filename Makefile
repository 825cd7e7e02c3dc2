# The one door: every target sets up what it needs. `make help` lists them.
SHELL := /bin/bash
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
BENCH := .venv/.bench
# The installer itself, which the locks cannot hold
UV_VERSION := 0.13.9
ARGS ?=
CHECKPOINT ?=
STEPS ?=
IMAGES ?=
RESULTS ?= $(sort $(wildcard benchmarks/results/*.json))

.DEFAULT_GOAL := help
.PHONY: help setup train sample evaluate figures test test-all lint format ci bench bench-quick bench-full bench-table table1 table2 table_iddpm table_ddim lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with the pinned dependencies and this package

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet -r requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps -e .
	@touch $@

train: $(STAMP) ## Train with the defaults (ARGS="schedule=cosine ..." changes them)
	$(BIN)/python train.py $(ARGS)

sample: $(STAMP) ## Draw images: make sample ARGS="checkpoint=runs/ddpm/default"
	$(BIN)/python sample.py $(ARGS)

evaluate: $(STAMP) ## Score a checkpoint: make evaluate ARGS="checkpoint=runs/ddpm/default"
	$(BIN)/python evaluate.py $(ARGS)

table1: ## Ho et al. (2020), Table 1 beside ours: STEPS=2000 IMAGES=1000 ARGS="data=digits ..." for less than the paper's
table2: ## Ho et al. (2020), Table 2; CHECKPOINT=runs/table2 scores runs that are there, and trains none
table_iddpm: ## Nichol & Dhariwal (2021) on CIFAR-10, with the same variables
table_ddim: ## Song et al. (2021), Table 1, on one checkpoint: make table_ddim CHECKPOINT=runs/ddpm/default IMAGES=1000
table1 table2 table_iddpm table_ddim: $(STAMP)
	$(BIN)/python -m ddpm.tables $@ $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(if $(STEPS),--steps $(STEPS)) \
	  $(if $(IMAGES),--images $(IMAGES)) -- $(ARGS)

figures: $(STAMP) ## The figures of docs/math.md (CHECKPOINT=runs/ddpm/default adds the bound of a model)
	$(BIN)/python -m ddpm.figures --out docs/images $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

test: $(STAMP) ## The tests, in minutes
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(STAMP) ## The slow tests too
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP) ## Formatting, lint, types and the floors of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ci: lint test bench-quick ## What has to pass

$(BENCH): $(STAMP) benchmarks/requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet -r benchmarks/requirements.lock
	@touch $@

bench: $(BENCH) ## Speed beside other libraries and the machine's own; ARGS="--row train_step" measures less, ARGS="--resume" goes on
	$(BIN)/python -m benchmarks.speed run $(ARGS)

bench-quick: $(BENCH) ## Does the benchmark work? Tiny sizes, no result
	$(BIN)/python -m benchmarks.speed run --quick $(ARGS)

bench-full: $(BENCH) ## The benchmark with what is compiled, on a CPU too
	$(BIN)/python -m benchmarks.speed run --full $(ARGS)

bench-table: $(STAMP) ## The table of docs/performance.md, from RESULTS="benchmarks/results/..."
	$(BIN)/python -m benchmarks.speed report $(RESULTS) --into docs/performance.md

lock: $(STAMP) ## Pin the newest versions that fit pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --upgrade -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra bench --universal --python-version 3.11 --constraint requirements.lock \
	  --no-header --no-annotate --no-emit-index-url --upgrade -o benchmarks/requirements.lock

clean: ## Remove what was built, not what was trained
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
