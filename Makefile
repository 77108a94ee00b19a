# The entry points for people and CI. `make install` makes .venv; the others call it when it is
# missing or older than what it was made from.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: help demo test check docs format install bench bench-idle bench-membership bench-policies bench-sim soak clean coverage

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(STAMP) ## three nodes, a real model, a killed node: see the mesh work
	$(BIN)/meshnode demo

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest

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

bench-sim: $(STAMP) ## the simulator's own speed: cores from 100 to 5,000 nodes, and whole daemons
	$(BIN)/python -m bench.simulator
	$(BIN)/python -m bench.virtual_daemons

bench-policies: $(STAMP) ## the reference fleet through every routing policy, next to a reference simulation
	$(BIN)/python -m bench.policies

soak: $(STAMP) ## the cases of membership with as many seeds as SOAK_CPU_S (1800) seconds of CPU allow
	$(BIN)/python -m bench.soak
	$(BIN)/python -m pytest -m soak tests

install: ## make or refresh .venv
	@rm -f $(STAMP)
	@$(MAKE) --no-print-directory $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/install
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh .ci/install
	@touch $(STAMP)

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage bench-results
