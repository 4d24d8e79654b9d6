# Two commands are enough on a fresh machine: `make pretrain` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := platform federation compliance jobs tests benchmarks examples

.PHONY: help pretrain test test-slow lint bench clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

pretrain: $(VENV)/.installed  ## Pretrain on the embedded MNI152 brain, through `ray job submit` on a local Ray
	$(BIN)/fedvox demo

test: $(VENV)/.installed  ## Lint, types, import contracts and all tests but the slow ones
	$(MAKE) lint
	@# Real clusters, servers and browsers come after the rest, one at a time: they need the cores for themselves.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not integration" -n auto --maxprocesses=8 --dist loadfile --durations=15; \
	first=$$?; $(BIN)/python -m pytest -m "integration and not slow" --durations=15 && exit $$first

test-slow: $(VENV)/.installed  ## The tests that take minutes each
	$(BIN)/python -m pytest -m slow --timeout=3600

lint: $(VENV)/.installed  ## Ruff, mypy, import contracts
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed  ## Every benchmark, as ratios against peers in one run
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
