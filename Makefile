# `make help` lists what there is. Everything runs in .venv, which is set up by the first target that needs it.

.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTEST := .venv/bin/python -m pytest
PACKAGES := tests $(dir $(wildcard */__init__.py))
# "compat" puts a path where setuptools otherwise puts a program, which costs each Python, and so each bridge, 10 ms and 1 MB.
INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: compiled ## the main job on real input; options: make demo ARGS="--chaos"
	@.venv/bin/quaybridge demo $(ARGS)

test: lint compiled ## all checks and all tests; what needs RabbitMQ is skipped, loudly, where there is none
	$(PYTEST) $(ARGS)

test-fast: .venv/.ready ## the fast layer alone: seconds
	$(PYTEST) tests/fast $(ARGS)

soak: lint compiled ## all tests in their long forms, and what they counted: hours
	QUAYBRIDGE_SOAK=1 $(PYTEST) -rP --timeout 7200 $(ARGS)

chaos: compiled ## kills under load, and the books of it; LONG=1: 100,000 requests; ARGS="--seed N --json"
	@PYTHONPATH=tests .venv/bin/python -m chaos $(if $(LONG),--plan long) $(ARGS)

lint: .venv/.ready ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/.bench compiled ## measure speed against other systems, on RabbitMQ; options: make bench ARGS="--only a,b --rounds 3 --quick"
	@.venv/bin/python -m benchmarks $(ARGS)

RABBITMQ_IMAGE ?= rabbitmq:4-management

rabbitmq: ## get a RabbitMQ to test with, after asking: the image where Docker works, else the distribution's package
	@if docker info >/dev/null 2>&1; then \
	  get="docker pull $(RABBITMQ_IMAGE)"; \
	elif command -v apt-get >/dev/null; then \
	  get="$$([ "$$(id -u)" -eq 0 ] || echo sudo) apt-get install rabbitmq-server"; \
	else \
	  echo "make rabbitmq: neither Docker nor apt-get works here: install Docker, or put rabbitmq-server on PATH" >&2; \
	  exit 1; \
	fi; \
	printf 'Run `%s`? [y/N] ' "$$get"; read -r answer; \
	case "$$answer" in [yY]*) exec $$get ;; *) echo 'Nothing was done.' ;; esac

clean: ## remove .venv, caches and build products
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 has venv but not ensurepip, which is in python3-venv: so a .venv counts only when its pip runs.
.venv/.ready: pyproject.toml
	@for candidate in python3.13 python3.12 python3.11 python3 none; do \
	  python=$$($$candidate -c 'import sys; sys.version_info >= (3, 11) and print(sys.executable)' 2>/dev/null); \
	  if [ -n "$$python" ]; then break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  found=$$(python3 --version 2>/dev/null || echo 'no python3'); \
	  echo "make: Python 3.11 or later is needed, and here is $$found: try sudo apt-get install python3.11 python3.11-venv" >&2; \
	  exit 1; \
	fi; \
	if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	  if $$python -c 'import ensurepip, venv' 2>/dev/null; then $$python -m venv --clear .venv; \
	  elif command -v virtualenv >/dev/null; then virtualenv --quiet --clear --python "$$python" .venv; \
	  elif command -v uv >/dev/null; then rm -rf .venv && uv venv --quiet --seed --python "$$python" .venv; \
	  else \
	    package=$$($$python -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    echo "make: $$python cannot make a virtual environment: sudo apt-get install $$package" >&2; \
	    exit 1; \
	  fi || exit 1; \
	fi; \
	echo "make: setting up .venv with $$(.venv/bin/python --version)" >&2; \
	$(INSTALL) '.[test]'
	@touch $@

# What pip does with all it installs, but not for --editable. Where PYTHONDONTWRITEBYTECODE is set, as in many images,
# every bridge, node and command that is started would compile it again.
compiled: .venv/.ready
	@.venv/bin/python -m compileall -q $(PACKAGES)

# The systems that are compared with: only here, and for nothing else.
.venv/.bench: .venv/.ready
	$(INSTALL) '.[bench]'
	@touch $@

# DSPy is 300 MB with what it needs: only for its example, and for the tests of that, which say so where it is not.
dspy: .venv/.dspy ## install DSPy, for examples/dspy and its tests

.venv/.dspy: .venv/.ready
	$(INSTALL) '.[test,dspy]'
	@touch $@

.PHONY: help compiled demo test test-fast soak chaos lint bench rabbitmq dspy clean
