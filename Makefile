# Two commands matter: `make run` and `make test`. Each prepares what it needs, once; a second call takes seconds.
# Recipes are plain sh, name only relative paths (so a checkout may lie under a path with spaces) and need no git.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?=
# The versions of Python that the locks are made for; requires-python and cluster/checks.py name the same.
PYTHONS := 3.11 3.12 3.13
ROOMS := dag db tools actors serve cluster
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PYTEST := $(BIN)/python -m pytest
# How many processes the tests run in. Most tests wait more than they compute.
PROCESSES ?= 4
SPREAD := -n $(PROCESSES) --dist loadscope --no-loadscope-reorder
FAULTS ?= 7:0.02
MINUTES ?= 5
SEED ?= 1
SUBTASKS ?= 200000
TESTS ?= tests
CHAOS ?=
ROUNDS ?= 20
KILLS ?=

LOCKED := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --strip-extras --no-header \
    --no-annotate

# Says what a virtual environment was made from, so that nothing is done twice: the lock, the project, the place.
key = $$({ cat $(1) pyproject.toml; pwd; $(BIN)/python -V; } | cksum)

.PHONY: help
help:  ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

##@ use it

.PHONY: run
run: .venv-run  ## start everything, run one demonstration task, serve until Ctrl-C
	@exec $(BIN)/rayloom up

.PHONY: install
install: .venv-run  ## make .venv with the locked dependencies of the product alone (cluster nodes, servers)

.PHONY: setup
setup: .venv-dev names  ## make .venv with the locked dependencies of product and tests

##@ test it

.PHONY: test
test: setup  ## all tests but the long ones; starts the services that it needs by itself
	@failed=0; \
	$(PYTEST) $(TESTS) $(SPREAD) -m "not timed and not long and not model" || failed=1; \
	$(PYTEST) $(TESTS) -m "timed and not long and not model" || failed=1; \
	exit $$failed

.PHONY: test-fast
test-fast: setup  ## the tests that need no services, under a minute
	@$(PYTEST) tests/unit tests/property $(SPREAD)

.PHONY: test-model
test-model: setup  ## the tests with the small model, which is downloaded into build/models (Gemma terms of use)
	@$(BIN)/python -m tests.integration.local_model.shelf
	@$(PYTEST) tests/integration/local_model -m model

.PHONY: test-long
test-long: setup  ## only the long runs
	@$(PYTEST) tests -m long

.PHONY: test-faults
test-faults: setup  ## what must hold whatever breaks, with faults injected into every process; FAULTS=seed:rate
	@RAYLOOM_TEST_FAULTS=$(FAULTS) $(PYTEST) tests/integration/engine/test_graphs.py \
	    tests/integration/engine/test_outputs.py tests/integration/engine/test_failures.py \
	    tests/integration/engine/test_cancel.py -m "not exact and not long"

.PHONY: chaos
chaos: setup  ## kill everything at random for MINUTES, then check every guarantee; SEED, CHAOS="--subtasks 5000 …"
	@$(BIN)/python -m tests.chaos.run --minutes $(MINUTES) --seed $(SEED) $(CHAOS)

.PHONY: kills
kills: setup  ## kill each kind of process once under load, then two at a time for ROUNDS; SEED, KILLS="--no-singles …"
	@$(BIN)/python -m tests.chaos.kills --rounds $(ROUNDS) --seed $(SEED) $(KILLS)

.PHONY: soak
soak: setup  ## run SUBTASKS no-ops and plot the memory of each process; fails if one grows (build/soak.png)
	@$(BIN)/python -m tests.soak.run --subtasks $(SUBTASKS)

.PHONY: cover
cover: setup  ## fast tests with branch coverage of dag/, which must be complete
	@$(PYTEST) tests/unit/dag tests/property --cov --cov-report=term-missing:skip-covered

.PHONY: check
check: setup  ## ruff, mypy strict, import arrows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=build/names $(BIN)/lint-imports

.PHONY: fmt
fmt: setup  ## format, and mend what ruff can mend
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

.PHONY: bench
bench: setup  ## the workloads W1, W2, W3 and W5 beside plain Ray; BENCH="--repeat 5 W1 W5" chooses
	@$(BIN)/python -m bench.run $(BENCH)

##@ keep it

.PHONY: lock
lock: .venv-made  ## make the lock files anew, from pyproject.toml and those of the local models (needs network)
	@$(BIN)/uv --version >/dev/null 2>&1 || $(PIP) install --quiet uv
	@for lock in "requirements.lock --extra embedded --extra build" \
	             "requirements-dev.lock --extra embedded --extra build --extra e2b --extra dev -c requirements.lock"; do \
	    set -- $$lock; out=$$1; shift; \
	    $(BIN)/uv pip compile pyproject.toml $(LOCKED) "$$@" --output-file $$out || exit 1; \
	done
	@cd cluster/local_model && for model in small coder; do \
	    ../../$(BIN)/uv pip compile $$model.in $(LOCKED) --output-file $$model.lock || exit 1; \
	done

.PHONY: clean
clean:  ## remove what was built here (.venv, build, caches); data in RAYLOOM_HOME stays
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -rf rayloom.egg-info

# --- how an environment comes to be ---------------------------------------------------------------------------------

RIGHT_VERSION := import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHONS)".split())

# The first Python of a right version that really starts and can make environments. A name on PATH proves little: a pyenv
# shim stands there for versions that are not chosen, and Debian's python3 comes without venv. So each one is tried.
.PHONY: .venv-made
.venv-made:
	@if [ -x $(BIN)/python ] && $(BIN)/python -c '$(RIGHT_VERSION)' 2>/dev/null \
	    && { [ ! -f .venv/made-in ] || [ "$$(cat .venv/made-in)" = "$$(pwd)" ]; }; then exit 0; fi; \
	[ -d .venv ] && echo "Making .venv anew: it was moved, or its Python is gone."; \
	old=""; \
	set -- $(PYTHONS:%=python%) python3 python $(PYTHONS:%=/usr/bin/python%) /usr/bin/python3 \
	    $(PYTHONS:%=/usr/local/bin/python%) $(PYTHONS:%=/opt/homebrew/bin/python%) \
	    $(PYTHONS:%="$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/%.*/bin/python) \
	    $(foreach v,$(PYTHONS),"$$HOME"/.local/share/uv/python/cpython-$(v).*/bin/python$(v)); \
	if [ -n "$(PYTHON)" ]; then set -- "$(PYTHON)"; fi; \
	for python in "$$@"; do \
	    "$$python" -c '$(RIGHT_VERSION)' 2>/dev/null || continue; \
	    if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then old="$$python"; continue; fi; \
	    "$$python" -m venv --clear .venv && pwd > .venv/made-in && exit 0; \
	    echo "make: $$python can't make .venv here: is the disk full, or the folder not yours?" >&2; exit 1; \
	done; \
	if [ -n "$$old" ]; then \
	    echo "make: $$old has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv) and try again." >&2; \
	else \
	    echo "make: rayloom needs Python 3.11, 3.12 or 3.13: install one, or name it: make PYTHON=/path/to/python3.13" >&2; \
	fi; \
	exit 1

# `install` puts exactly the locked files there and refuses any other; the project itself follows as a link to here.
define install
if [ "$$(cat .venv/installed-$(1) 2>/dev/null)" != "$(call key,$(2))" ]; then \
    echo "Installing the locked dependencies ($(2)); the first time takes a minute or two ..."; \
    $(PIP) install --quiet --require-hashes --no-deps -r $(2) \
        || { echo "make: pip could not install $(2): see its message above (network? disk full?)" >&2; exit 1; }; \
    PYTHONWARNINGS=ignore $(PIP) install --quiet --no-deps --no-build-isolation -e . \
        || { echo "make: pip could not install rayloom itself: see its message above" >&2; exit 1; }; \
    echo "$(call key,$(2))" > .venv/installed-$(1); \
fi
endef

# The development lock holds all that the other holds, in the same versions.
.PHONY: .venv-run .venv-dev
.venv-run: .venv-made
	@if [ "$$(cat .venv/installed-dev 2>/dev/null)" = "$(call key,requirements-dev.lock)" ]; then exit 0; fi; \
	$(call install,run,requirements.lock)

.venv-dev: .venv-made
	@$(call install,dev,requirements-dev.lock)

# What mypy and import-linter look through to see dag/ as rayloom.dag: see CONTRIBUTING.md.
.PHONY: names
names:
	@mkdir -p build/names/rayloom
	@for room in $(ROOMS); do [ -L build/names/rayloom/$$room ] || ln -s ../../../$$room build/names/rayloom/$$room; done
