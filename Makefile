# make weekly   the weekly job on the sample corpus that ships with gpudrift
# make test     lint, types and all tests
# Both make the environment first: .venv, from pyproject.toml, at the versions constraints.txt pins.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help weekly nightly ci synthetic backfill test lint types unit bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

weekly: $(VENV)/run.stamp ## the weekly job on the sample corpus -> out/weekly
	$(BIN)/python -m gpudrift +experiment=weekly

nightly: $(VENV)/run.stamp ## a day of the sample corpus against the reference -> out/nightly
	$(BIN)/python -m gpudrift +experiment=nightly

ci: $(VENV)/run.stamp ## the gate: exit code 20 on an alert -> out/ci
	$(BIN)/python -m gpudrift +experiment=ci

synthetic: $(VENV)/run.stamp ## week 0 against week 4 of a generated corpus -> out/synthetic
	$(BIN)/python -m gpudrift +experiment=synthetic

backfill: $(VENV)/run.stamp ## every week of the sample corpus -> out/weekly
	$(BIN)/python -m gpudrift +experiment=weekly job=backfill

test: lint types unit ## lint, types and all tests

lint: $(VENV)/dev.stamp ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp ## mypy, strict
	$(BIN)/mypy

unit: $(VENV)/dev.stamp ## pytest
	$(BIN)/python -m pytest

bench: $(VENV)/dev.stamp ## the pairwise core against the bare matrix product, and the reader against the raw read
	$(BIN)/python benchmarks/pairs.py
	$(BIN)/python benchmarks/read_parquet.py

clean: ## remove the environment and outputs
	rm -rf $(VENV) out dist build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# pip here is the venv's own; the constraint keeps torch at the version that was tested
$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/run.stamp
