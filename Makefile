# The entry points for people and CI. `make install` makes .venv; the others call it when it is
# missing or older than what it was made from. `make demo` needs the package alone, all else the tools too.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN_STAMP := $(VENV)/.installed-run
BIN := $(VENV)/bin
# Tests go to so many processes at once; tests/conftest.py says how.
WORKERS ?= 2

.PHONY: help demo test test-failed check docs format install bench bench-failover bench-idle bench-membership bench-models bench-policies bench-routing bench-sim soak clean coverage

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(RUN_STAMP) ## three nodes, a real model, a killed node: see the mesh work
	$(BIN)/meshnode demo

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope || { echo $$? > $(VENV)/.tests-ended; exit 1; }

# Of a run that came to its end (1: with failures); and at most five tests, for more are no accident.
test-failed: $(STAMP) ## the tests that failed in the last run, one after the other
	@test "$$(cat $(VENV)/.tests-ended)" = 1
	@test "$$($(BIN)/python -m pytest --last-failed --last-failed-no-failures none --collect-only -q | grep -c ::)" -le 5
	$(BIN)/python -m pytest -n 0 --last-failed --last-failed-no-failures none

check: $(STAMP) ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy meshnode tests bench docs/generate.py
	$(BIN)/lint-imports

docs: $(STAMP) ## rewrite the pages of docs/ that are made from the code
	$(BIN)/python docs/generate.py

format: $(STAMP) ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage: $(STAMP) ## branch coverage of the tests, in the terminal
	$(BIN)/python -m pytest --cov --cov-report=term-missing

bench: $(STAMP) ## speed, starts, memory, idle CPU, next to bare servers in the same run
	$(BIN)/python -m bench.serving
	$(BIN)/python -m bench.idle

bench-idle: $(STAMP) ## only starts, memory, and CPU of 30 idle members
	$(BIN)/python -m bench.idle

bench-membership: $(STAMP) ## membership of 10, 100 and 1,000 virtual nodes, next to published figures
	$(BIN)/python -m bench.membership

bench-models: $(STAMP) ## a CNN, batching, Python models' processes, transfers and reloads, next to baselines
	$(BIN)/python -m bench.models

bench-sim: $(STAMP) ## the simulator's own speed: cores from 100 to 5,000 nodes, and whole daemons
	$(BIN)/python -m bench.simulator
	$(BIN)/python -m bench.virtual_daemons

bench-policies: $(STAMP) ## the cost of a decision; the reference fleet through every policy, next to a simulation
	$(BIN)/python -m bench.router
	$(BIN)/python -m bench.policies

bench-routing: $(STAMP) ## the table of routing: every row over five seeds; writes docs/routing-results.md
	$(BIN)/python -m bench.routing --workers $(WORKERS) --page docs/routing-results.md

bench-failover: $(STAMP) ## nodes killed, frozen, flapping and cut off under load: what clients notice
	$(BIN)/python -m bench.failover
	$(BIN)/python -m bench.failover --network

soak: $(STAMP) ## the cases of membership with as many seeds as SOAK_CPU_S (1800) seconds of CPU allow
	$(BIN)/python -m bench.soak
	$(BIN)/python -m pytest -m soak tests

install: ## make or refresh .venv
	@rm -f $(STAMP)
	@$(MAKE) --no-print-directory $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/install
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh .ci/install dev
	@touch $(STAMP) $(RUN_STAMP)

$(RUN_STAMP): pyproject.toml constraints.txt .ci/install
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh .ci/install run
	@touch $(RUN_STAMP)

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage bench-results
