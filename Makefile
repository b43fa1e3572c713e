PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One stamp per set of extras: a changed pyproject.toml installs anew, nothing else does.
STAMPS := $(VENV)/.stamps
# usual_*.py are what the others are measured against, and the full study takes hours.
BENCHMARKS := $(filter-out benchmarks/usual_% benchmarks/full_study%,$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMPS)/run ## Run the whole study on synthetic pages
	$(BIN)/ecgfeat demo

test: $(STAMPS)/test ## Run the tests (ARGS="-m slow" for the long ones)
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

check: $(STAMPS)/dev ## Lint, format, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(STAMPS)/test ## Measure the speed against the usual ways
	@for script in $(BENCHMARKS); do echo "$$script" && $(BIN)/python $$script || exit 1; done

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find ecgfeat cli tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'make: ecgfeat needs Python 3.11 or newer; name one: make PYTHON=python3.12 …' >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo 'make: $(PYTHON) made no virtual environment. On Debian and Ubuntu install' >&2; \
		echo '      python3-venv, or name another Python: make PYTHON=python3.12 …' >&2; \
		exit 1; }

$(STAMPS)/run: EXTRAS :=
$(STAMPS)/test: EXTRAS := [test]
$(STAMPS)/dev: EXTRAS := [dev]
$(STAMPS)/run $(STAMPS)/test $(STAMPS)/dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.$(EXTRAS)'
	@mkdir -p $(STAMPS)
	@touch $@
