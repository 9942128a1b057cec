# Each target sets up .venv first if it is missing. `make PYTHON=python3.12 table` picks another interpreter.
PYTHON ?= python3
BIN := .venv/bin
TESTS := $(BIN)/pytest --numprocesses 2 --no-loadscope-reorder --durations 20  # tests/conftest.py divides them
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
ENGINE ?= $(firstword $(notdir $(shell command -v podman docker)) podman)
# uv where it is there, which installs the same in a fraction of the time.
INSTALL := $(if $(shell command -v uv),uv pip install --quiet --python $(BIN)/python,$(BIN)/pip install --quiet)
READY := .venv/.ready
DOCS := .venv/.docs

.PHONY: table test test-fast lint docs bench calibrate lock container restore merge
.DEFAULT_GOAL := table

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; this is $$($(PYTHON) --version). Use make PYTHON=/path/to/python."; exit 2; }
	$(PYTHON) -m venv .venv
	$(INSTALL) --require-hashes --requirement requirements.lock
	$(INSTALL) --no-deps --editable .
	touch $@

table: $(READY)  ## both tables, at the scale of params.yaml
	$(BIN)/snakemake --cores all tables
	@cat results/table4_1.md results/table4_2.md

test: $(READY)  ## everything that this machine can run
	$(TESTS)

test-fast: $(READY)  ## seconds, not minutes
	$(TESTS) -m "not slow"

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakemake --lint

$(DOCS): $(READY)
	sed '/--hash/d; s/ \\$$//' requirements.lock > .venv/versions.txt  # pip would ask for hashes of all that docs adds
	$(INSTALL) --constraint .venv/versions.txt --editable '.[docs]'
	touch $@

docs: $(DOCS)  ## the site of these pages, into site/; a broken link fails
	$(BIN)/mkdocs build

bench: $(READY)  ## speed as ratios, into results/benchmarks.csv; of a GPU, where there is one, into docs/measured/gpu
	$(BIN)/python -m tests.benchmarks.run
	$(BIN)/python -m tests.benchmarks.bench_gpu

calibrate: $(READY)  ## the evaluator against published numbers; fetches weights and data, hours without a GPU (docs/evaluate.md)
	$(BIN)/python workflow/scripts/calibrate.py --reference workflow/reference/calibration.csv --out resources/calibration

lock:  ## requirements.lock anew, with uv: versions that it has stay where they fit; --upgrade-package NAME moves one
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-emit-index-url \
		--no-annotate --custom-compile-command 'make lock' --output-file requirements.lock $(LOCK) pyproject.toml

container:  ## resources/diffsiam-<version>.sif, which Snakemake's jobs run in where they are told to (docs/container.md)
	$(ENGINE) build --file Containerfile --tag diffsiam:$(VERSION) .
	mkdir -p resources
	$(ENGINE) save --output resources/diffsiam-$(VERSION).tar diffsiam:$(VERSION)
	apptainer build --force resources/diffsiam-$(VERSION).sif docker-archive:resources/diffsiam-$(VERSION).tar
	rm resources/diffsiam-$(VERSION).tar

restore: $(READY)  ## take over results that are here without Snakemake's records (docs/dvc.md)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash workflow/scripts/restore.sh

merge: $(READY)  ## tables of a run that was made in parts: make merge RUN=docs/measured/cifar-study (docs/cluster.md)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash workflow/scripts/merge.sh "$(RUN)"
