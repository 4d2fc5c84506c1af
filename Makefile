.DEFAULT_GOAL := help
.PHONY: help demo test lint slow soak bench docs clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Images of containers often forbid Python to keep what it has compiled; then each of many processes does it again.
unexport PYTHONDONTWRITEBYTECODE

help: ## show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-7s %s\n", $$1, $$2}'

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedsim needs Python 3.11 or newer; set PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,trackers]'
	@touch $@

demo: $(INSTALLED) ## run the quickstart experiment and write its report
	$(BIN)/fedsim run experiments/quickstart.yaml

test: lint ## check style, types, and run the tests and the examples in the documentation
	$(BIN)/python -m pytest -n 2 -m 'not slow'

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy

slow: $(INSTALLED) ## run the tests that take longer
	$(BIN)/python -m pytest -n 2 -m slow --ignore=tests/deploy
	$(BIN)/python -m pytest -m slow tests/deploy

soak: $(INSTALLED) ## run deployments that lose a node, and what takes longest besides; takes more than an hour
	FEDSIM_SOAK=1 $(BIN)/python -m pytest -m slow tests/deploy
	FEDSIM_SOAK=1 $(BIN)/python -m pytest -n 2 -m slow tests/running/test_growth.py tests/test_ranges.py
	FEDSIM_SOAK=1 $(BIN)/python -m pytest -n 2 tests/kill

bench: $(INSTALLED) ## measure speed, as ratios within one run
	for file in experiments/benchmarks/*.py; do $(BIN)/python $$file || exit; done

docs: $(INSTALLED) ## write the reference of the experiment file and the parts, and all pages into site
	$(BIN)/python -m fedsim.spec.reference > docs/reference.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean: ## remove everything that can be made again
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
