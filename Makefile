# `make demo` and `make test` are all that a newcomer needs: each sets up what it needs by itself.
PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
BIN := $(VENV)/bin
ARGS ?=
# Where nothing may be missing, neither may coverage.
COVERED := $(if $(filter all,$(OTEL_PERF_REQUIRE)),95,0)

.PHONY: help demo test test-all bench load tools stack check lint locks clean

help:  ## Shows this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## The streak service under live traffic, with a live table: make demo ARGS="--seconds 15 --json".
	@$(BIN)/python -m examples.demo $(ARGS)

test: $(VENV)/.dev  ## All tests, types, style and import direction. Servers that are missing are skipped with the reason.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=$(COVERED) $(ARGS)

test-all: $(VENV)/.dev  ## The tests on each supported Python that this machine has.
	requirements/each-python $(ARGS)

bench: $(BENCH_VENV)/.bench  ## What it costs, ours and peers, in one run: make bench ARGS="--json", "--only NAME", "--help".
	@$(BENCH_VENV)/bin/python -m tests.benchmarks $(ARGS)

load: $(BENCH_VENV)/.bench  ## Locust's users on the streak service, and its targets: make load ARGS="--database sqlite --seconds 30".
	@$(BENCH_VENV)/bin/python -m tests.benchmarks.streak_load $(ARGS)

tools:  ## The real servers that the tests and the stack use (Go, otelcol, Jaeger, Debian packages).
	$(PYTHON) collector/tools.py install

stack: $(VENV)/.dev  ## The whole pipeline as plain processes: Collector, Prometheus, Jaeger, the streak service.
	$(BIN)/python collector/stack.py up $(ARGS)

check: $(VENV)/.dev  ## Sends known traffic through the whole pipeline and reads it all back.
	$(BIN)/python collector/stack.py check $(ARGS)

lint: $(VENV)/.dev  ## Mends style where a machine can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

locks: $(VENV)/.dev  ## Compiles requirements/*.lock anew.
	PATH="$(CURDIR)/$(BIN):$$PATH" requirements/compile

clean:  ## Removes what the other targets made here.
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(BIN)/uv: requirements/installer.lock
	@$(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo 'otel_perf needs Python >= 3.10 with venv: `apt-get install python3-venv`, or make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@echo "Making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/installer.lock
	@touch $@

$(VENV)/.demo: requirements/demo.lock pyproject.toml $(BIN)/uv
	@echo "Installing what the demo needs"
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r requirements/demo.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.lock pyproject.toml $(BIN)/uv
	@echo "Installing what development needs"
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r requirements/dev.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The peers live in an environment of their own: they are never dependencies, and they patch what they find.
$(BENCH_VENV)/.bench: requirements/bench.lock pyproject.toml $(BIN)/uv
	@echo "Making the environment of the benchmarks in $(BENCH_VENV)"
	@test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	@VIRTUAL_ENV=$(BENCH_VENV) $(BIN)/uv pip sync --quiet --require-hashes requirements/bench.lock
	@VIRTUAL_ENV=$(BENCH_VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
