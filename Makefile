# Entry points for a bare checkout with Python 3.11 and make. `make` lists the targets.

PYTHON  ?= python3.11
BACKEND ?= cpu
VENV    := .venv
BIN     := $(VENV)/bin
UV_PIN  := uv==0.13.9
JOBS    ?= 2

REQUIREMENTS := requirements/$(BACKEND).txt requirements/dev.txt
OVERRIDES    := $(if $(filter cpu,$(BACKEND)),--override requirements/overrides-cpu.txt)

# The name of the stamp contains a checksum of all files that determine the installation. While it matches, setup does
# nothing and needs no network.
SETUP_KEY := $(BACKEND)-$(firstword $(shell cat requirements/*.txt pyproject.toml | cksum))
STAMP     := $(VENV)/.setup-$(SETUP_KEY)
STARTED   := $(shell date +%s)

# The source of torch. uv does not read pip's configuration, so pip's folders are passed to it. Without such a folder (or
# without the wheel in it), uv uses torch's own index for the selected backend.
FIND_LINKS    := $(foreach place,$(PIP_FIND_LINKS),--find-links $(place))
TORCH_BACKEND := --torch-backend=$(if $(filter cpu,$(BACKEND)),cpu,auto)
UV_INSTALL    := $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode $(OVERRIDES) \
                 $(foreach file,$(REQUIREMENTS),-r $(file))

.DEFAULT_GOAL := help
.PHONY: help setup setup-small browser demo demo-small test test-slow lint format docs bench clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install everything (BACKEND=cpu or cuda); a second run does nothing

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or set PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version), but 3.11 or 3.12 is needed: set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV_PIN)
	$(if $(FIND_LINKS),$(UV_INSTALL) $(FIND_LINKS) ||) $(UV_INSTALL) $(TORCH_BACKEND)
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m genevolve_ray._torchvision
	@rm -f $(VENV)/.setup-*
	@touch $@

setup-small: setup ## also install the parts of the preset small, which requirements/small.txt pins by hash
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes --only-binary :all: -r requirements/small.txt || \
		{ echo "The parts of small are pinned for Linux (x86-64, aarch64) and macOS 14 (arm64), Python 3.11 and 3.12;" \
		       "here is $$(uname -sm), $$($(BIN)/python --version): docs/small.md" >&2; exit 2; }

browser: ## install Chromium and Prometheus on Debian, as root; tests that need them are skipped without
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium prometheus fonts-dejavu-core

demo: setup ## evolve the embedded world and write the report (ARGS=--cold-start first trains the starting checkpoint)
	GENEVOLVE_SETUP_SECONDS=$$(( $$(date +%s) - $(STARTED) )) $(BIN)/genevolve demo $(ARGS)

demo-small: setup-small ## evolve a pretrained policy with a real pipeline and real judges, and write the report
	@echo "setup: parts become models, corpus and requests in runs/small (about 3 minutes on two cores; once)"
	$(BIN)/genevolve small setup
	@echo "demo: the cold start's evaluation, ten steps of GRPO and VED, the same evaluation (about 15 minutes, 10 GiB)"
	@echo "The report will be runs/demo-small/report.html. If this is interrupted, make demo-small continues it."
	GENEVOLVE_SETUP_SECONDS=$$(( $$(date +%s) - $(STARTED) )) $(BIN)/genevolve demo small $(ARGS)

# JOBS processes share the tests; tests/conftest.py says how. Tests need no network. They use one thread each, because the
# pools of engine and learner would compete for the cores.
test test-slow: export HF_HUB_OFFLINE := 1
test test-slow: export OMP_NUM_THREADS := 1

# A test that fails is run once more, and the summary names it: other work on the machine can exceed a time limit of a service
# or process that a test starts. A test that is named there again and again is a defect.
test: setup ## run all tests except the slow ones (about 25 minutes on two cores; ARGS go to pytest)
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(JOBS) --reruns 1 -rR $(ARGS)

test-slow: setup ## run the slow tests, which take minutes each
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: setup ## run ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup ## apply the automatic fixes of ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure this machine: episodes, learner, transport, services, TRL (ARGS go to the benchmarks)
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the environment and all caches; keep runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The build reads local files alone. The notice that MkDocs prints is about its version 2, which is not used.
docs: export NO_MKDOCS_2_WARNING := 1
docs: setup ## write the pages that are made from code, and build the site in build/site (checks all links)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/docs.txt
	$(BIN)/python -m docs.configuration
	$(BIN)/python -m mkdocs build
