# One door to everything; each target sets up what it needs on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv demo test lab kernel-lab check bench soak clean

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(READY) ## the virtual environment with the locked dependencies

# uv comes from PyPI into the venv itself; every other package is pinned with its hash.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"Python 3.11 or later is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=...")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@test -x $(VENV)/bin/uv || $(VENV)/bin/python -m pip install -q --disable-pip-version-check 'uv>=0.5,<1'
	@$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python --require-hashes -r requirements.lock
	@$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python --no-deps --editable .
	@touch $@

demo: $(READY) ## a cluster on loopback: failover and the way back, without root
	@$(VENV)/bin/standfast demo

test: check ## all checks and all tests; the lab needs root
	@if [[ $$(id -u) == 0 ]]; then \
	  tests/tools/run-tests; \
	else \
	  $(VENV)/bin/pytest -m 'not lab and not kernel_lab'; \
	  echo "make test: LEFT OUT: tests/lab and tests/kernel_lab (overlay mounts, loop" \
	    "devices, network namespaces, containers and virtual kernels need root): sudo make test"; \
	fi

lab: $(READY) ## the container lab alone (root): three nodes with real parts
	@if [[ $$(id -u) != 0 ]]; then \
	  echo "make lab: needs root for overlay mounts, loop devices, network namespaces and" \
	    "systemd-nspawn: sudo make lab" >&2; exit 1; \
	fi
	@tests/tools/lab-packages
	@$(VENV)/bin/pytest tests/lab

kernel-lab: $(READY) ## the kernel lab alone (root): three machines with real kernels and NFS
	@if [[ $$(id -u) != 0 ]]; then \
	  echo "make kernel-lab: needs root for tap devices, network namespaces and cgroups:" \
	    "sudo make kernel-lab" >&2; exit 1; \
	fi
	@tests/tools/lab-packages
	@$(VENV)/bin/pytest tests/kernel_lab

check: $(READY) ## ruff, mypy, shellcheck, unit files, alert rules
	@tests/tools/static-checks

bench: $(READY) ## what the guard, a scrape and (root) replication and the lab's parts take
	@$(VENV)/bin/python -m tests.bench_guard
	@$(VENV)/bin/python -m tests.bench_exporter
	@if [[ $$(id -u) == 0 ]]; then $(VENV)/bin/python -m tests.bench_replication; \
	  $(VENV)/bin/python -m tests.lab.bench; \
	  else echo "make bench: LEFT OUT: replication and the lab's parts, which need root:" \
	    "sudo make bench"; fi

# Not ?=: a shell may export a SECONDS of its own.
soak: SOAK_SECONDS := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),600)
soak: $(READY) ## replication under a steady write load (root): make soak SECONDS=600
	@$(VENV)/bin/python -m tests.soak_replication --seconds $(SOAK_SECONDS)

clean: ## everything made by the targets above
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
