# Everything runs inside .venv, which the first target that needs it creates. Only python3 (3.11 or newer) and make are
# required; nothing is installed twice, because each install step leaves a stamp that depends on its own inputs.
#
# torch is a step of its own: the same lock then serves CPU and CUDA machines. For another build:
#   make demo TORCH='torch==2.10.0'

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
DEMO_ARGS ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2
IMAGE ?= earthpress:dev

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: help demo test check bench lock image clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    simulated scenes -> embeddings -> map -> report, in ./demo (no network needed once installed)'
	@echo 'make test    the test suite, as CI runs it'
	@echo 'make check   ruff and mypy'
	@echo 'make bench   the benchmarks'
	@echo 'make lock    renew requirements.lock (UPGRADE=--upgrade for newer versions)'
	@echo 'make image   container image'
	@echo 'make clean   remove .venv and caches'

demo: $(VENV)/.ready
	$(BIN)/earthpress demo $(DEMO_ARGS)

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy pipeline

bench: $(VENV)/.ready
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(PY) "$$script"; done

# --- environment ------------------------------------------------------------------------------------------------------

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The stamp's name holds the requirement, so that another TORCH installs again.
TORCH_STAMP := $(VENV)/.torch-$(shell printf %s "$(TORCH)" | tr -c A-Za-z0-9.+ _)
$(TORCH_STAMP): $(VENV)/.created
	$(PIP) install --quiet '$(TORCH)'
	@rm -f $(VENV)/.torch-*
	@touch $@

$(VENV)/.locked: requirements.lock $(TORCH_STAMP)
	$(PIP) install --quiet --require-hashes --no-deps -r requirements.lock
	@touch $@

$(VENV)/.ready: pyproject.toml $(VENV)/.locked
	$(PIP) install --quiet --no-deps --editable .
	$(PIP) check
	@touch $@

# --- lock -------------------------------------------------------------------------------------------------------------
# One file for every platform and Python from 3.11 on, with hashes and without any index address. torch and the
# libraries that only its builds choose are left out. What stands in requirements.lock is kept unless UPGRADE says
# otherwise. The result is checked for addresses and must install into an empty environment.

UPGRADE ?=
LOCK_CHECK := $(VENV)/.lock-check
NOT_LOCKED := ^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==

lock: $(VENV)/.created
	$(PIP) install --quiet 'uv>=0.9'
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --custom-compile-command 'make lock' --quiet $(UPGRADE) --output-file requirements.lock
	awk '/^[A-Za-z0-9]/ { drop = ($$0 ~ /$(NOT_LOCKED)/) } !drop' requirements.lock > requirements.lock.new
	mv requirements.lock.new requirements.lock
	@! grep -n -i -E 'index-url|find-links|trusted-host|://|file:' requirements.lock
	rm -rf $(LOCK_CHECK)
	$(PYTHON) -m venv $(LOCK_CHECK)
	$(LOCK_CHECK)/bin/python -m pip install --quiet '$(TORCH)'
	$(LOCK_CHECK)/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(LOCK_CHECK)/bin/python -m pip check
	rm -rf $(LOCK_CHECK)

# --- image ------------------------------------------------------------------------------------------------------------

image:
	docker build --build-arg TORCH_SPEC='$(TORCH)' --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || true)" \
	    --tag $(IMAGE) .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
