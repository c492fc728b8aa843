# run    the whole pipeline on the embedded default; flags through ARGS="--rendering.num-inference-steps 10"
# test   lint and all tests that need no GPU
# quick  the fast tests, in less than two minutes
# docs   the documentation site, into build/site; a warning is an error
# lint   ruff, ruff format and mypy, changing nothing
# lock   renew requirements.lock from pyproject.toml
# gpu    what needs a card, measured and tested in nine minutes, into build/gpu; SCRIPT=FILE is diffusers' to compare with
# wheel-test   the built wheel runs the default in an empty folder
#
# Where .venv or the lock is new, .venv is made from the lock first; where not, that costs nothing.

PYTHON ?= python3
BIN := .venv/bin
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
INSTALLED := .venv/.installed
export UV_HTTP_TIMEOUT ?= 300

.PHONY: install run test quick docs lint lock gpu wheel-test

install: $(INSTALLED)

run: $(INSTALLED)
	$(BIN)/ip2p run shapes $(ARGS)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadgroup --no-loadscope-reorder

# Three workers of one thread each, also on two cores: much of the time goes to processes that start, wait and end.
test: lint
	$(PYTEST) -n 3 $(ARGS)

quick: $(INSTALLED)
	$(PYTEST) -n 2 -m "not slow and not gpu" $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Installs nothing: a machine with a card may have no network, and a torch of its own.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu:
	PYTHONPATH="$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))" $(GPU_PYTHON) -m tests.benchmarks.kit \
		$(if $(SCRIPT),--script $(SCRIPT)) $(ARGS)

wheel-test: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_wheel.py $(ARGS)

# All extras but deepspeed, which comes as source alone and is built for the machine that it runs on.
LOCKED := app dev docs lpips photographs ray s3 server wandb

lock: $(BIN)/python
	$(UV) pip compile pyproject.toml $(LOCKED:%=--extra %) --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		$(ARGS) --output-file requirements.lock

# The lock holds setuptools too, so the package itself is installed without fetching anything that has no hash.
$(INSTALLED): requirements.lock pyproject.toml setup.py | $(BIN)/python
	$(UV) pip install --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed. Name one: make PYTHON=python3.12' >&2; exit 1; }
	@if command -v uv >/dev/null; then uv venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .venv; \
	else $(PYTHON) -m venv .venv && $@ -m pip install --quiet 'uv>=0.8'; fi
