# `make chat` and `make test` are all the set-up there is; both can be repeated.
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN     = $(VENV)/bin
# One thread per worker: several small tests side by side are quicker than one on all cores.
WORKERS ?= 2
# Rooms whose tests take milliseconds, and greedy text through the whole runtime.
FAST    = tests/test_*.py tests/sequoia_tree tests/scheduler tests/loaders/checkpoint tests/loaders/io \
          tests/loaders/tokenizers tests/offload_runtime/grammar tests/offload_runtime/text \
          tests/offload_runtime/exactness/test_greedy_exactness.py

.PHONY: help chat test fast lint pins clean

help:
	@echo "make chat   install into $(VENV) if needed, then chat with the bundled demonstration pair, trees always on"
	@echo "            (other models: make chat ARGS='--model DIR_OR_NAME'; all options: ARGS=--help)"
	@echo "make test   install into $(VENV) if needed, then run the whole test suite"
	@echo "make fast   a third of its tests in three minutes of CPU time: for while you work"
	@echo "make lint   ruff and mypy over the code"
	@echo "make pins   whether constraints.txt can be installed, for every Python and build of PyTorch; installs nothing"
	@echo "make clean  remove $(VENV) and caches"

chat: $(VENV)/.installed-chat
	@$(BIN)/python -m offload_runtime.chat $(or $(ARGS),--tree sequoia)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(ARGS) $(FAST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pins: $(VENV)/.installed-dev
	$(BIN)/python scripts/check_pins.py

$(VENV)/.installed-chat: EXTRAS =
$(VENV)/.installed-test: EXTRAS = [test]
$(VENV)/.installed-dev: EXTRAS = [dev]
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: Python 3.10 or newer is needed; this is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/pip || { rm -rf $(VENV); echo "Making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); } \
		|| { rm -rf $(VENV); echo "error: python3 cannot make virtual environments. Try: sudo apt install python3-venv"; exit 2; }
	@echo "Installing pinned packages (constraints.txt): 0.25 GB to download with PyTorch's CPU build, 2.8 GB with CUDA's"
	@$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.$(EXTRAS)'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
