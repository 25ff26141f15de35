.DEFAULT_GOAL := help
.PHONY: help install run test chaos chaos-zones rolling check privacy bench bench-quick openapi schema settings audit lint format lock clean
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
MINUTE ?= 60

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: .venv/installed ## create .venv, with everything for running and testing

.venv/installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@test ! -L .venv || { echo '.venv is a link: remove it first, or what it leads to would be cleared' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.txt
	@touch $@

run: install ## start everything, with demo members (MINUTE=1: a minute lasts a second)
	@exec $(BIN)/python -m dev.run --minute-seconds $(MINUTE)

test: install ## run the tests, in parallel, on embedded servers
	$(BIN)/python -m pytest -n auto --dist loadgroup -q

chaos: install ## break every part under load, and count broken promises (ten minutes; ONLY='Redis paused' runs one fault)
	$(BIN)/python -m benchmarks.chaos $(if $(ONLY),--only '$(ONLY)')

chaos-zones: install ## lose machines of two zones, PostgreSQL's and Redis' primaries first (seven minutes)
	$(BIN)/python -m benchmarks.chaos --zones $(if $(ONLY),--only '$(ONLY)')

rolling: install ## upgrade from the release before under load, process by process, and go back (four minutes)
	$(BIN)/python -m benchmarks.chaos --rolling

check: install lint test ## run everything that CI runs

privacy: install ## attack the location blur, and print what an adversary learns (a few minutes)
	$(BIN)/python -m benchmarks.privacy

lint: install ## check format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## format, and fix what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## measure speed, CPU and punctuality, and write docs/measurements/performance.md (40 minutes; needs wrk and node)
	$(BIN)/python -m benchmarks.load

bench-quick: install ## compare the revision REV with HEAD (2 minutes; needs wrk)
	$(BIN)/python -m benchmarks.load.quick $(REV)

openapi: install ## write docs/openapi.json from the code
	$(BIN)/python -m dev.openapi

schema: install ## write docs/schema.sql from the migrations
	$(BIN)/python -m dev.schema

settings: install ## write docs/settings.md out of the declarations
	$(BIN)/python -m dev.settings

audit: install ## ask PyPI whether a pinned dependency has a known vulnerability
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.txt

lock: ## pin the ranges of setup.cfg to exact versions, with hashes
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra heic setup.cfg -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra heic --extra embedded --extra dev -c requirements.txt setup.cfg -o requirements-dev.txt

clean: ## delete the demo's data and the virtual environment
	rm -rf .state .venv
