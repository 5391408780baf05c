# Each target sets up .venv by itself, with plain pip and the tested versions. Python compiles what it imports, which
# is about a third of all that is installed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO_DIR ?= demo-out

.PHONY: demo test test-clients lint format docs clean

demo: .venv/installed
	$(BIN)/hubctl demo --workdir $(DEMO_DIR)

# Files side by side, as many as there are cores: each computes with one thread, or they would wait for each other.
# Tests start hundreds of processes, which are to find hubctl compiled.
test: .venv/installed
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Other versions of huggingface_hub, npm's client, a caching proxy: each in an environment of its own, in .clients.
test-clients: .venv/installed
	$(BIN)/python -m tests.clients.environments
	$(BIN)/python -m pytest -m clients tests/clients

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/python -m tests.conventions.filemap

clean:
	rm -rf .venv .clients $(DEMO_DIR)

.venv/installed: pyproject.toml constraints.txt
	@echo "Setting up .venv; the first time this takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@
