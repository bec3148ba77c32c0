# Everything starts here, from a bare checkout with Python 3.11 and make. `make` alone lists the targets.

PYTHON  ?= python3.11
BACKEND ?= cpu
VENV    := .venv
BIN     := $(VENV)/bin
UV_PIN  := uv==0.13.9
JOBS    ?= 2

REQUIREMENTS := requirements/$(BACKEND).txt requirements/dev.txt
OVERRIDES    := $(if $(filter cpu,$(BACKEND)),--override requirements/overrides-cpu.txt)

# The name of the stamp holds a checksum of all that decides what is installed: while it matches, set-up does nothing
# and needs no network.
SETUP_KEY := $(BACKEND)-$(firstword $(shell cat requirements/*.txt pyproject.toml | cksum))
STAMP     := $(VENV)/.setup-$(SETUP_KEY)
STARTED   := $(shell date +%s)

# Where torch comes from. uv does not read pip's configuration, so the folders that pip would look into are passed on.
# Without such a folder (or where it lacks the wheel) uv picks torch's own index for the chosen backend.
FIND_LINKS    := $(foreach place,$(PIP_FIND_LINKS),--find-links $(place))
TORCH_BACKEND := --torch-backend=$(if $(filter cpu,$(BACKEND)),cpu,auto)
UV_INSTALL    := $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode $(OVERRIDES) \
                 $(foreach file,$(REQUIREMENTS),-r $(file))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format bench clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install everything (BACKEND=cpu or cuda); a second run does nothing

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV_PIN)
	$(if $(FIND_LINKS),$(UV_INSTALL) $(FIND_LINKS) ||) $(UV_INSTALL) $(TORCH_BACKEND)
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.setup-*
	@touch $@

demo: setup ## evolve the embedded world and write the report (ARGS=--cold-start trains the start first)
	GENEVOLVE_SETUP_SECONDS=$$(( $$(date +%s) - $(STARTED) )) $(BIN)/genevolve demo $(ARGS)

# JOBS processes share the tests (tests/conftest.py says how). They need no network, and one thread each: the pools of engine and learner would fight over the cores.
test test-slow: export HF_HUB_OFFLINE := 1
test test-slow: export OMP_NUM_THREADS := 1

test: setup ## every test but the slow ones (under 8 minutes on two cores; ARGS go to pytest)
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(JOBS) $(ARGS)

test-slow: setup ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: setup ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure this machine: episodes, learner, transport, services, TRL (ARGS are passed on)
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the environment and all caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
