# `make book` and `make test` need only python3 and make: they set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
FLOW := .venv-workflow/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEVICE ?= cpu
WORKERS ?= 1
PORT ?= 8000

# Small networks on few cores: one thread a process is many times faster than all
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup browser lint type test quick lite full front book lab serve bench faults check clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*##/ {printf "make %-7s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## install everything into .venv

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -y -qq python3-venv && \
	  $(PYTHON) -m venv --clear .venv; } || { \
	  echo "no venv module: install python3-venv and run this again" >&2; exit 6; }
# the lock is whole: looking for more, pip would take the newest of a name with extras
	$(PIP) --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip check
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

browser:  # Chromium, for the tests of the built pages
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || { \
	  echo "the tests of the pages need Chromium: install it and run this again" >&2; exit 6; }

# Snakemake, apart from .venv: no code here imports it. Without it the rest is tested
$(FLOW): workflow/requirements.lock | $(READY)
	@$(BIN)/python -m venv --clear --without-pip .venv-workflow && \
	  $(BIN)/python -m pip --python .venv-workflow install --quiet \
	  --disable-pip-version-check --no-deps --require-hashes -r $< && touch $@ || \
	  echo "no Snakemake could be installed: its tests will be skipped" >&2

lint: $(READY)  ## ruff: rules and layout
	$(BIN)/ruff check src tests book benchmarks
	$(BIN)/ruff format --check src tests book benchmarks

type: $(READY)  ## mypy, strict, on src
	$(BIN)/mypy

test: $(READY) browser $(FLOW)  ## all tests, chapters and pages included
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

quick: $(READY)  ## every chapter at smoke scale, training included, in a minute or two
	$(BIN)/python -c 'from saddlebook import book; book.execute_all(scale="quick")'

lite: $(READY)  ## every record of the laptop scale, every chapter, the book; resumable
	$(BIN)/saddlebook reproduce --scale lite --workers $(WORKERS) $(DATA:%=--data %)

full: $(READY)  ## the paper's own setting: make full DEVICE=cuda DATA=…; resumable
	$(BIN)/saddlebook reproduce --scale full --device $(DEVICE) \
	  --workers $(WORKERS) $(DATA:%=--data %) $(LIMIT:%=--limit %)

front: $(READY)  ## the README's first screen and the table of findings, from records
	$(BIN)/python -c 'from pathlib import Path; from saddlebook.book import sheets; sheets.write_front(Path())'

book: $(READY)  ## the book, from committed records, into _build/html
	$(BIN)/saddlebook book

lab: $(READY)  ## JupyterLab on copies of the chapters, in _build/lab
	$(BIN)/python -c 'from saddlebook import book; book.export_all("_build/lab")'
	$(BIN)/jupyter lab --notebook-dir _build/lab

serve: book  ## the book at http://127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

bench: $(READY)  ## the benchmarks, each a table
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/hessian.py product
	$(BIN)/python benchmarks/saddles.py

faults: $(READY) $(FLOW)  ## kills, damage and bad input, counted; LONG=1 for all of it
	nice $(BIN)/python benchmarks/faults/sweep.py --kills $(if $(LONG),200,60) \
	  --damage $(if $(LONG),500,40) $(if $(LONG),--long)

check: lint type test  ## lint, types, tests, records
	$(BIN)/saddlebook verify

clean:  ## remove what was built; .venv, checkpoints and the lab with its runs stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	[ ! -d _build ] || find _build -mindepth 1 -maxdepth 1 ! -name lab -exec rm -rf {} +
