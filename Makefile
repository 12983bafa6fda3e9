# Everything here works on a fresh machine with Python 3.11 and its venv module.
SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
WORKERS ?= 2
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true

.DEFAULT_GOAL := help
.PHONY: help setup repro test smoke faults zoo cluster lint golden tables lock ui docs

help:  ## Show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY)  ## Make .venv with the pinned packages

$(READY): requirements.lock pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV): minutes, most of them for torch"
	$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar on \
	  -r requirements.lock | \
	  awk '/^(Collecting|Downloading|Installing|Successfully)/ {print substr($$0, 1, 110); fflush()}'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

repro: $(READY)  ## Run the default study; a line per stage, then its table
	@espalier run

test: $(READY)  ## Lint, types and all tests (no network, no GPU)
	ruff check .
	ruff format --check .
	mypy pipeline stages reports methods models
	pytest -q -n $(WORKERS) --dist loadfile --timeout 900

smoke: $(READY)  ## Only the tests that run the whole pipeline
	pytest -q tests/test_smoke.py

faults: $(READY)  ## Kill and damage a tiny study at random for MINUTES
	python -m tests.faults --minutes $${MINUTES:-10}

zoo: $(READY)  ## Every network of tests/zoo, pruned and compared (timm: pip install -e .[zoo])
	pytest -q -m zoo tests/zoo

cluster: $(READY)  ## A study in jobs of a real Slurm (Debian: slurmctld slurmd munge)
	pytest -q -m cluster tests/cluster

lint: $(READY)  ## Format and lint
	ruff format .
	ruff check --fix .

golden: $(READY)  ## Rewrite the golden files; review their diff as a result
	ESPALIER_GOLDEN=write pytest -q tests

tables: $(READY)  ## Rebuild the tables from the tracked records, training nothing
	@espalier run --only report --single

lock:  ## Resolve requirements.lock anew for every system (needs uv)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
	  --no-header --no-annotate --output-file requirements.lock

ui: $(READY)  ## Open the tracked runs in MLflow
	@espalier ui

docs: $(READY)  ## Build the documentation site in build/site (packages: the extra `docs`)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e .[docs]
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	@echo "Open build/site/index.html; with search: python -m http.server -d build/site"
