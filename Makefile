# make quickstart and make test do everything on a fresh machine: environment, installation, work.

PYTHON := .venv/bin/python
STAMP := .venv/.installed
CODE := megatron_hyena pretrain tools launch tests benchmarks examples
# On all cores, up to four. Tests of a file stay together, since they share what it sets up; the
# rooms with the long files come first. A process that dies is not replaced: the run has failed.
SPREAD := -n logical --maxprocesses 4 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check format docs clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

install: $(STAMP)  ## .venv with everything (TORCH=torch==2.11.0 for another version)

$(STAMP): pyproject.toml tools/install.sh tests/peers/requirements.txt
	@bash tools/install.sh

quickstart: $(STAMP)  ## from the shipped genome to a trained, evaluated, exported model
	@$(PYTHON) -m tools.quickstart

test: $(STAMP)  ## the whole suite
	@$(PYTHON) -m pytest $(SPREAD)

check: $(STAMP)  ## formatting, lint, types, import contracts, fast tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy $(CODE)
	.venv/bin/lint-imports
	$(PYTHON) -m pytest $(SPREAD) -m "not parallel and not slurm and not smoke and not slow and not gpu"

format: $(STAMP)  ## let ruff format and mend
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

docs: $(STAMP)  ## generated pages
	$(PYTHON) -m tools.config_reference

clean:  ## caches and build leftovers; environment, corpora and runs stay
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .slurm-test
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
