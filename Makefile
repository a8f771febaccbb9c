# make weekly   the weekly job on the sample corpus that ships with gpudrift
# make test     lint, types and all tests
# Both make the environment first: .venv, from pyproject.toml, at the versions constraints.txt pins.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The GPU kernels are compiled without a GPU on two Triton releases: the one torch 2.11 ships with, and the newest, named
# here so that a run today and one next month check the same. Each lies in a folder of its own: torch's CUDA build pins
# the one it wants, and the CPU build brings none. A new release: change the number, then `make budget`.
TRITON_OLDEST := 3.6.0
TRITON_NEWEST := 3.9.0
TARGET = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target
TRITON := .triton/$(TRITON_OLDEST).stamp .triton/newest-$(TRITON_NEWEST).stamp

.PHONY: help weekly nightly ci synthetic backfill test lint types unit tools fuzz triton aot budget oracles calibration outcomes bench bench-peers bench-gpu clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

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

unit: $(VENV)/dev.stamp $(TRITON) tools ## pytest
	$(BIN)/python -m pytest -n 2 --dist worksteal

fuzz: $(VENV)/dev.stamp ## the property tests on new random examples
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=fuzz

tools: $(VENV)/dev.stamp ## promtool, Prometheus and Chromium for the tests, where there is apt
	$(BIN)/python tests/tools.py

triton: $(TRITON) ## two Triton releases in .triton, to check GPU kernels without a GPU

aot: $(VENV)/dev.stamp $(TRITON) ## compile every GPU kernel without a GPU: registers, shared memory, spills
	$(BIN)/python tests/kernels/aot.py

budget: $(VENV)/dev.stamp $(TRITON) ## keep what aot finds now as the budget it is held to
	$(BIN)/python tests/kernels/aot.py --write-budget

oracles: $(VENV)/dev.stamp ## every statistic beside independent libraries
	$(BIN)/python benchmarks/oracles.py

calibration: $(VENV)/dev.stamp ## type-I error, coverage, false alarms and power, measured
	$(BIN)/python benchmarks/calibration.py

outcomes: $(VENV)/dev.stamp ## links to product metrics: false alarms and power, measured
	$(BIN)/python benchmarks/outcomes.py

bench: $(VENV)/dev.stamp ## the pairwise core against the bare matrix product, and the reader against the raw read
	$(BIN)/python benchmarks/pairs.py
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/read_parquet.py

bench-peers: $(VENV)/dev.stamp ## the same score by other packages, in an environment of their own (.venv-peers)
	$(BIN)/python benchmarks/run.py --peers

bench-gpu: ## on a CUDA machine, with its own python: checks, rates and peers -> benchmarks/results
	$(PYTHON) benchmarks/gpu_suite.py

clean: ## remove the environment and outputs
	rm -rf $(VENV) .triton .tools out dist build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# pip here is the venv's own; the constraint keeps torch at the version that was tested
$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/run.stamp

# Without -c: the constraints name no triton, and nothing it depends on is wanted (--no-deps)
.triton/$(TRITON_OLDEST).stamp: | $(VENV)/bin/python
	rm -rf .triton/$(TRITON_OLDEST)
	$(TARGET) .triton/$(TRITON_OLDEST) triton==$(TRITON_OLDEST)
	@touch $@

.triton/newest-$(TRITON_NEWEST).stamp: | $(VENV)/bin/python
	rm -rf .triton/newest .triton/newest-*.stamp
	$(TARGET) .triton/newest triton==$(TRITON_NEWEST)
	@touch $@
