# demo and test work from a bare clone: they create .venv and install into it first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   prune a robust network on 8x8 digits to 90, 95 and 99 %, pack it, measure it again (three minutes after installation)"
	@echo "make test   run every check and test"

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: .venv/.installed

demo: install
	$(BIN)/hydraprune run digits-demo --out runs/digits-demo
	$(BIN)/hydraprune export runs/digits-demo/pruner=hydra,sparsity=0.95/finetune --option values=int8
	$(BIN)/hydraprune report runs/digits-demo --out runs/digits-demo/report.html

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check
	$(BIN)/pytest --numprocesses 2

clean:
	rm -rf .venv runs .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
