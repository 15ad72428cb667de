# make run   a virtual environment, everything installed, pylb serving with its embedded defaults
# make test  lint, types, import contracts, all tests          make help  the rest
.DEFAULT_GOAL := help
.PHONY: help run test test-long test-system test-kubernetes test-ui core lint format demo bench soak fuzz fuzz-webhook fuzz-parsers zipapp dist deb version docs screenshots lock audit clean python

VENV   := .venv
DIST   := dist
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check install -q
# Exact versions with their hashes, of all that is needed; then pylb itself, which needs nothing more.
LOCKED := $(PIP) --require-hashes -r
PYLB   := $(PIP) --no-deps -e .
LOCKS  := requirements.lock locks/dev.lock locks/ui.lock locks/release.lock
# What makes and judges the locks has an environment of its own: it brings another pip.
RELEASE := $(VENV)/release
UV     := $(RELEASE)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock"
# The first interpreter that is new enough (pylb needs 3.11 to 3.13).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

# Whole systems in a folder, as root: minutes to make. `make test-system` runs them, and `make test` does not.
SYSTEM := tests/system
# A real kube-apiserver, if PYLB_KUBE_APISERVER names one (docs/kubernetes.md).
KUBE   := tests/kubernetes
REST   := tests --ignore=tests/core --ignore=$(SYSTEM) --ignore=$(KUBE)
# Those that measure time that passes. Only their files are given, because collecting all tests takes longer than running these.
ALONE  := $(shell grep -rl --include='test_*.py' 'mark\.alone' tests)
# One more than processors, for much of a test is waiting for others; at most as many as tests/support/ports.py has shares.
BESIDE := $(shell n=$$(($$(nproc) + 1)); echo $$((n < 9 ? n : 9)))

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

run: $(VENV)/.run ## start pylb without a config and without root: webhook on 9000, admin on 8404
	@exec $(VENV)/bin/pylb run $(ARGS)

demo: $(VENV)/.run ## show how an app moves between nodes under load, on loopback
	@exec $(VENV)/bin/pylb demo

# All parts run even if one fails, and the last line says which.
test: $(VENV)/.dev $(if $(filter true,$(CI)),$(VENV)/.ui) ## run all tests except test-system, with long cases scaled down
	@failed=; \
	$(MAKE) --no-print-directory -j2 -Otarget -k lint core || failed="lint-or-core"; \
	$(PY) -m pytest -n $(BESIDE) --dist worksteal -m "not alone" $(REST) -q $(LONG) || failed="$$failed side-by-side"; \
	$(PY) -m pytest -m alone $(ALONE) -q $(LONG) || failed="$$failed alone"; \
	test -z "$$failed" || { echo "FAILED: $$failed"; exit 1; }

test-long: ## run all tests except test-system, with long cases in full
	@$(MAKE) --no-print-directory test LONG=--long

test-system: $(VENV)/.dev $(RELEASE)/.made ## run the tests that need a whole system: images, packages, systemd (as root)
	$(PY) -m pytest $(SYSTEM) -q $(LONG)

test-kubernetes: $(VENV)/.dev ## run the controller against a real API server (PYLB_KUBE_APISERVER=FILE; see docs/kubernetes.md)
	$(PY) -m pytest $(KUBE) -q $(LONG)

core: $(VENV)/.dev ## run tests/core, which must cover every branch of pylb/core
	$(PY) -m coverage run -m pytest tests/core -q $(LONG)
	$(PY) -m coverage report

lint: $(VENV)/.dev ## check style, types and import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/.dev ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.dev ## measure direct, pylb, haproxy and nginx in one interleaved run (ARGS="--help" for more)
	$(PY) -m bench $(ARGS)

soak: $(VENV)/.dev ## run 30 minutes of random streams, checked by SHA-256, while processes are killed and upgraded (ARGS="--help")
	$(PY) -m bench soak $(or $(ARGS),--kills --minutes 30)

fuzz: $(VENV)/.dev ## run 50,000 random steps of the engine's state machine
	$(PY) -W error -m tests.forward.test_any_order 50000
	$(PY) -W error -m tests.forward.test_any_fault 10000

fuzz-webhook: $(VENV)/.dev ## send random bytes to a live webhook for ten minutes
	$(PY) -W error -m tests.contract.test_fuzz 10

fuzz-parsers: $(VENV)/.dev ## give every parser of pylb and the phone-home random bytes, up to 1 MiB, for ten minutes (ARGS="--help")
	$(PY) -W error -m tests.fuzz $(ARGS)

zipapp: $(VENV)/.run ## make the phone-home as one file: dist/phonehome.pyz
	$(PY) deploy/zipapp.py $(DIST)/phonehome.pyz

dist: $(RELEASE)/.made zipapp ## make in dist/ the wheel, sdist, the phone-home as one file, and their SHA256SUMS
	@rm -f $(DIST)/*.whl $(DIST)/*.tar.gz $(DIST)/SHA256SUMS
	@$(RELEASE)/bin/python -m hatchling build -d $(DIST)
	@cd $(DIST) && sha256sum *.whl *.tar.gz *.pyz > SHA256SUMS && cat SHA256SUMS

deb: dist ## make there the Debian package of the Debian or Ubuntu it runs on (apt install dpkg-dev debhelper python3-venv)
	@deploy/debian/build $(DIST)

version: $(VENV)/.dev ## write VERSION=0.2.0 wherever the version is written (CONTRIBUTING, "A release")
	$(PY) deploy/set_version.py $(VERSION)
	@$(MAKE) --no-print-directory docs

docs: $(VENV)/.dev ## update the generated parts of docs/ and deploy/
	$(PY) docs/generate.py
	$(PY) deploy/kubernetes/make_configmap.py

test-ui: $(VENV)/.ui ## test the status page in Chromium; part of `make test` once this has run, and with CI=true
	$(PY) -m pytest tests/ui -q $(LONG)

screenshots: $(VENV)/.ui ## take the README's screenshots again (as root, with chromium)
	$(PY) -m pytest tests/ui/test_screenshots.py -q --screenshots

# uv reads no pip.conf: with a mirror of your own set UV_DEFAULT_INDEX.
lock: $(RELEASE)/.made ## resolve all locks again, for all interpreters at once (ARGS=--upgrade: newest versions; needs the network)
	$(UV) pyproject.toml -o requirements.lock $(ARGS)
	$(UV) pyproject.toml -c requirements.lock --group test --group lint --group deploy -o locks/dev.lock $(ARGS)
	$(UV) -c locks/dev.lock --group ui -o locks/ui.lock $(ARGS)
	$(UV) -c locks/dev.lock --group release -o locks/release.lock $(ARGS)

audit: $(RELEASE)/.made ## look for known vulnerabilities in the locked packages (needs the network)
	$(RELEASE)/bin/pip-audit --strict --require-hashes --disable-pip $(addprefix -r ,$(LOCKS))

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
	@$(LOCKED) requirements.lock && $(PYLB) && touch $@

$(VENV)/.dev: pyproject.toml locks/dev.lock | $(PY)
	@echo "installing pylb and its tools into $(VENV)"
	@$(LOCKED) locks/dev.lock && $(PYLB) && touch $@ $(VENV)/.run

$(VENV)/.ui: locks/ui.lock | $(VENV)/.dev
	@echo "installing what drives a browser into $(VENV)"
	@$(LOCKED) locks/ui.lock && touch $@

$(RELEASE)/.made: locks/release.lock | $(PY)
	@$(PY) -m venv $(RELEASE)
	@$(RELEASE)/bin/python -m pip --disable-pip-version-check install -q --require-hashes -r locks/release.lock && touch $@
