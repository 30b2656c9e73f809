# Every target is a line a person would type. `make demo` and `make test` need only Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled once, and not in every one of the hundreds of processes that tests start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-node test-browser test-android test-conformance chaos lint types imports check test-containers bench guard lock docs clean

setup: .venv/.ready

.venv/.ready: requirements/dev.lock pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Legato needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv: the first time this takes about a minute ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . -e clients/python
	touch $@

demo: setup
	$(BIN)/legato demo

test: setup check
	$(BIN)/python -m pytest

# The npm projects (clients/, tests/clients/, examples/), each from its lockfile. Needs Node.js 20 or newer with npm.
test-node: setup
	tests/clients/run $(NODE)

# Pages in Debian's Chromium and Firefox, which it installs where it may.
test-browser: setup
	tests/browser/run

# Behaviour as data, for the server and the Python client (also in `make test`), and for the TypeScript client.
test-conformance: setup
	$(BIN)/python -m tests.conformance
	$(BIN)/python -m tests.conformance --adapter "$(BIN)/python tests/conformance/adapters/python_client.py"
	npm ci --prefix clients --no-audit --no-fund --loglevel=error && npm run build --silent --prefix clients
	$(BIN)/python -m tests.conformance --adapter "node clients/typescript/conformance/adapter.mjs"

# The reader of docs/how-to/android.md, compiled and run. Needs a JDK (17 or newer) and Maven.
test-android: setup
	$(BIN)/python -m tests.mobile

check: lint types imports

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

# Faults of every kind against real processes, on every shape of the store. `legato chaos --help` for more.
chaos: setup
	$(BIN)/legato chaos --profile all --minutes 4

# The same suite on real images (redis 7.2, redis 8, valkey 8). Fails, never skips, without Docker.
test-containers: setup
	$(BIN)/python -m tests.containers

# Everything against everything, some hours; `make bench BENCH="--only W1 --quick"` for less (bench/README.md).
bench: setup
	$(BIN)/python -m bench $(BENCH)

# Has a token become dearer? Ratios to the floor and to the naive server of one run; a minute and a half.
guard: setup
	$(BIN)/python -m bench.guard

lock:
	uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--extra embedded --group dev pyproject.toml -o requirements/dev.lock
	uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--extra embedded pyproject.toml -o requirements/run.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
