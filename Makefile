# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_STATE ?= .demo

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-index mini constraints image-test clean

help: ## Say what each target does.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch first and by its exact version: with a CPU build at hand, later packages then find it satisfied.
$(VENV)/.%-installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

demo: $(VENV)/.demo-installed ## Install, start everything on loopback, load the sample notes; ctrl-C stops it.
	NOTELLM_STATE_DIR=$(DEMO_STATE) $(BIN)/notellm serve --samples

test: $(VENV)/.dev-installed check ## Install, then run every check and test that needs no GPU.
	$(BIN)/python -m pytest

check: $(VENV)/.dev-installed ## Format, lint, types, import rules.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev-installed ## Measure the hot path; the last line is one JSON object.
	$(BIN)/python tests/bench/related.py

bench-index: $(VENV)/.dev-installed ## Measure the index on a million vectors; the last line is one JSON object.
	$(BIN)/python tests/bench/index.py

mini: $(VENV)/.dev-installed ## Train model/mini again from the sample notes.
	$(BIN)/notellm samples --out build/samples
	$(BIN)/notellm pairs build/samples --out build/pairs.parquet --holdout 0.1
	$(BIN)/notellm train build/samples --pairs build/pairs.parquet --recipe mini --out model/mini

image-test: ## Build the gateway's image without a container engine and ask it for an answer (root, Debian).
	sh deploy/image_test.sh

constraints: ## Resolve constraints.txt anew from pyproject.toml (needs uv).
	sh deploy/constraints.sh

clean: ## Remove environments, caches and the demo's data.
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis $(DEMO_STATE)
