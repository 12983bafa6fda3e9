# Everything here works on a fresh machine with Python 3.11 and its venv module.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
WORKERS ?= 2
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true

.DEFAULT_GOAL := help
.PHONY: help setup repro test smoke lint golden tables ui

help:  ## Show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY)  ## Make .venv with the pinned packages

$(READY): requirements.lock pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

repro: $(READY)  ## Run the default study and print its table
	dvc repro --quiet
	@cat reports/tables/main.md
	@echo
	@echo "Every run: make ui, then http://127.0.0.1:5000"

test: $(READY)  ## Lint, types and all tests (no network, no GPU)
	ruff check .
	ruff format --check .
	mypy pipeline stages reports methods models
	pytest -q -n $(WORKERS) --dist loadfile --timeout 900

smoke: $(READY)  ## Only the tests that run the whole pipeline
	pytest -q tests/test_smoke.py

lint: $(READY)  ## Format and lint
	ruff format .
	ruff check --fix .

golden: $(READY)  ## Rewrite the golden files; review their diff as a result
	ESPALIER_GOLDEN=write pytest -q tests

tables: $(READY)  ## Rebuild the tables from the tracked records, training nothing
	dvc repro --quiet --single-item report
	@cat reports/tables/main.md

ui: $(READY)  ## Open the tracked runs in MLflow
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 \
	  --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"
