# One door to everything; each target sets up what it needs on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv wheel deb demo test lab kernel-lab torture fresh check docs bench soak clean

PYTHON ?= python3
VENV := .venv
UV := $(VENV)/bin/uv
READY := $(VENV)/.ready

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(READY) ## the virtual environment with the locked dependencies

# Every package is pinned with its hash, uv and what builds this project among them. Compiled here: where
# PYTHONDONTWRITEBYTECODE is set, each of the tests' processes would compile anew what it loads.
$(READY): pyproject.toml requirements.lock requirements-uv.lock $(wildcard bin/* handlers/* exporters/standfast-*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"Python 3.11 or later is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=...")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(UV) --version 2>/dev/null | grep -qw "$$(sed -n 's/^uv==\([^ ]*\).*/\1/p' requirements-uv.lock)" || \
	  $(VENV)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@$(UV) pip install -q --compile-bytecode --python $(VENV)/bin/python --require-hashes -r requirements.lock
	@$(UV) pip install -q --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

wheel: $(READY) ## dist/*.whl, built by the locked backend
	@$(UV) build -q --wheel --no-build-isolation --python $(VENV)/bin/python --out-dir dist .
	@ls dist/*.whl

deb: wheel ## dist/*.deb for Debian (root: installs what it needs): make deb VERSION=0.1.0+mine
	@tests/tools/deb $(VERSION)

demo: $(READY) ## a cluster on loopback: failover and the way back, without root
	@$(VENV)/bin/standfast demo

# What each runs, and what it needs, is in tests/tools/suite.
test: $(READY) ## static checks, every fast test and the lab's smoke test (root: all; else what it can)
	@tests/tools/suite test

lab: $(READY) ## the container lab (root): three nodes with real parts
	@tests/tools/suite lab

kernel-lab: $(READY) ## the kernel lab (root): three machines with real kernels and NFS
	@tests/tools/suite kernel-lab

torture: $(READY) ## long searches: make torture MINUTES=30
	@tests/tools/torture $(if $(MINUTES),$(MINUTES),30)

fresh: ## both commands of the README on a bare Debian 12, as a user and as root (root)
	@tests/tools/fresh

check: $(READY) ## ruff, mypy, shellcheck, unit files, alert rules, the pages' links
	@tests/tools/static-checks

docs: $(READY) ## the pages as a site: build/docs/docs/index.html
	@tests/tools/docs

bench: $(READY) ## measure, and write docs/benchmarks.md (root: all of it): make bench ARGS="--quick guard"
	@if [[ $$(id -u) == 0 ]]; then tests/tools/lab-packages; fi
	@$(VENV)/bin/python -m benchmarks $(ARGS)

# Not ?=: a shell may export a SECONDS of its own.
soak: SOAK_SECONDS := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),600)
soak: $(READY) ## replication under a steady write load (root): make soak SECONDS=600
	@$(VENV)/bin/python -m benchmarks.soak --seconds $(SOAK_SECONDS)

clean: ## everything made by the targets above
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
