# make run   a virtual environment, everything installed, pylb serving with its embedded defaults
# make test  lint, types, import contracts, all tests          make help  the rest
.DEFAULT_GOAL := help
.PHONY: help run test test-long test-system core lint format demo bench soak fuzz fuzz-webhook fuzz-parsers zipapp docs screenshots clean python

VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check install -q -c requirements.lock
# The first interpreter that is new enough (pylb needs 3.11 to 3.13).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

# Whole systems in a folder, as root: minutes to make. `make test-system` runs them, and `make test` does not.
SYSTEM := tests/system
REST   := tests --ignore=tests/core --ignore=$(SYSTEM)
# Those that measure time that passes. Only their files are given, because collecting all tests takes longer than running these.
ALONE  := $(shell grep -rl --include='test_*.py' 'mark\.alone' tests)
# One more than processors, for much of a test is waiting for others; at most as many as tests/support/ports.py has shares.
BESIDE := $(shell n=$$(($$(nproc) + 1)); echo $$((n < 9 ? n : 9)))

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

run: $(VENV)/.run ## start pylb here and now: webhook on 9000, admin on 8404, no config, no root
	@exec $(VENV)/bin/pylb run $(ARGS)

demo: $(VENV)/.run ## watch a node move under load, on loopback
	@exec $(VENV)/bin/pylb demo

# All parts run even if one fails, and the last line says which.
test: $(VENV)/.dev ## everything but test-system; long cases scaled down
	@failed=; \
	$(MAKE) --no-print-directory -j2 -Otarget -k lint core || failed="lint-or-core"; \
	$(PY) -m pytest -n $(BESIDE) -m "not alone" $(REST) -q $(LONG) || failed="$$failed side-by-side"; \
	$(PY) -m pytest -m alone $(ALONE) -q $(LONG) || failed="$$failed alone"; \
	test -z "$$failed" || { echo "FAILED: $$failed"; exit 1; }

test-long: ## everything but test-system, with the full figures
	@$(MAKE) --no-print-directory test LONG=--long

test-system: $(VENV)/.dev ## images, systemd and what else needs a whole system of its own (as root)
	$(PY) -m pytest $(SYSTEM) -q $(LONG)

core: $(VENV)/.dev ## tests/core alone, which must cover every branch of pylb/core
	$(PY) -m coverage run -m pytest tests/core -q $(LONG)
	$(PY) -m coverage report

lint: $(VENV)/.dev ## style, types, the layers as import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/.dev ## put the code into the house's layout
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.dev ## direct, pylb, haproxy and nginx in one interleaved run (ARGS="--help" for more)
	$(PY) -m bench $(ARGS)

soak: $(VENV)/.dev ## 30 minutes of random streams with SHA-256 on each, while workers and main are killed and upgraded (ARGS="--help")
	$(PY) -m bench soak $(or $(ARGS),--kills --minutes 30)

fuzz: $(VENV)/.dev ## 50,000 steps of the engine's state machine, in any order
	$(PY) -W error -m tests.forward.test_any_order 50000
	$(PY) -W error -m tests.forward.test_any_fault 10000

fuzz-webhook: $(VENV)/.dev ## ten minutes of whatever bytes against a live webhook
	$(PY) -W error -m tests.contract.test_fuzz 10

fuzz-parsers: $(VENV)/.dev ## ten minutes of whatever bytes, up to 1 MiB, for every parser of pylb and the phone-home (ARGS="--help")
	$(PY) -W error -m tests.fuzz $(ARGS)

zipapp: $(VENV)/.run ## the phone-home as one file: dist/phonehome.pyz
	$(PY) deploy/zipapp.py

docs: $(VENV)/.dev ## write the generated parts of docs/ and deploy/ anew
	$(PY) docs/generate.py
	$(PY) deploy/kubernetes/make_configmap.py

screenshots: $(VENV)/.dev ## make the README's pictures of the status page anew (as root, with chromium)
	$(PY) -m pytest tests/ui/test_screenshots.py -q --screenshots

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) dist .coverage .hypothesis .pytest_cache .mypy_cache .ruff_cache

python:
	@test -n "$(PYTHON)" || { echo "pylb needs Python 3.11, 3.12 or 3.13 and found none on PATH."; \
	  echo "Debian 12, Ubuntu 24.04 or newer: sudo apt install python3 python3-venv"; \
	  echo "Another interpreter: make run PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c '' 2>/dev/null || { echo "$(PYTHON) is no Python interpreter."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "$$($(PYTHON) --version) is not supported: pylb needs 3.11, 3.12 or 3.13."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module."; \
	  echo "Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }

$(PY): | python
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml requirements.lock | $(PY)
	@echo "installing pylb into $(VENV)"
	@$(PIP) -e . && touch $@

$(VENV)/.dev: pyproject.toml requirements.lock | $(PY)
	@echo "installing pylb and its tools into $(VENV)"
	@$(PIP) -e '.[dev]' && touch $@ $(VENV)/.run
