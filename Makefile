# `make` lists the targets. Each first finds or makes the environment: see tools/env/setup_env.py.
SHELL := bash
PYTHON3 := $(shell for python in python3 python3.11 python3.12 python3.10 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$python && break; done)
# Sets $$python in a recipe, or ends it.
ENVIRONMENT = if [ -z "$(PYTHON3)" ]; then echo 'Python 3.10 to 3.14 is needed on PATH.' >&2; exit 1; fi; \
	python=$$($(PYTHON3) tools/env/setup_env.py) || exit
# An active environment is used as it is, so it may lack these.
TEST_TOOLS = $$python -c 'import hypothesis, nbclient, pytest, ruff' 2>/dev/null || \
	{ echo "$$python lacks tools of the tests: $$python -m pip install -r requirements/test.txt" >&2; exit 1; }
PYTEST_ARGS ?=
MUTANTS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-onedl test-slow-onedl gpu-check mutants docs lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## find or make the environment (in .venv) and print its Python
	@$(ENVIRONMENT); echo $$python

demo: ## train, test and draw the small model on a real microscopy image (about 6 minutes)
	@$(ENVIRONMENT); $$python demo/run_demo.py

test: ## run the tests but for the slow ones (PYTEST_ARGS="-k name" to choose)
	@$(ENVIRONMENT); $(TEST_TOOLS); $$python -m pytest -m 'not slow' $(PYTEST_ARGS)

test-slow: ## run the slow tests
	@$(ENVIRONMENT); $(TEST_TOOLS); $$python -m pytest -m slow $(PYTEST_ARGS)

gpu-check: ## run on a GPU what needs one, and write docs/benchmarks-gpu.md
	@$(ENVIRONMENT); $(TEST_TOOLS); $$python tools/misc/gpu_check.py

docs: ## build the documentation as a site in build/site
	@$(ENVIRONMENT); $(TEST_TOOLS); $$python docs/site/build.py

test-onedl test-slow-onedl: export STACK = onedl
test-onedl: test ## run the same tests on the maintained fork of MMDetection (in .venv-onedl)

test-slow-onedl: test-slow ## run the slow tests on it

mutants: ## measure which mutated lines the tests notice (MUTANTS='embedmask_mmdet.targets*' to choose)
	@$(ENVIRONMENT); $$python -c 'import mutmut' 2>/dev/null || \
		{ echo "$$python lacks mutmut: $$python -m pip install -r requirements/mutants.txt" >&2; exit 1; }; \
	rm -rf mutants; export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive; \
	$$python -m mutmut run $(if $(MUTANTS),'$(MUTANTS)') && $$python tests/report_mutants.py

lint: ## check style and format
	@$(ENVIRONMENT); $(TEST_TOOLS); $$python -m ruff check && $$python -m ruff format --check

format: ## mend style and format
	@$(ENVIRONMENT); $(TEST_TOOLS); $$python -m ruff check --fix; $$python -m ruff format

clean: ## remove the environments, caches and results of builds (not data and work_dirs)
	rm -rf .venv .venv-* .cache build dist *.egg-info .pytest_cache .ruff_cache .hypothesis mutants embedmask_mmdet/_ext*.so
	find embedmask_mmdet tests tools configs demo -name __pycache__ -prune -exec rm -rf {} +
