# make demo: train, sample and draw the default flow.
# make test: the test suite.   make lint: the linters.
# make bench: side by side with PyTorch and its flow-matching libraries, and with diffrax; how the
# work grows, the whole demo, and where a step's time goes.
# All create .venv themselves and need Python 3.10 or newer and make; with a C++ compiler MLX's CPU
# backend is faster.

# The first Python that is new enough; choose another with `make PYTHON=... demo`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/flowmlx train

test: .venv/installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

clean:
	rm -rf .venv .bench-venv

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "flowmlx needs Python 3.10 or newer; none found on PATH" >&2; exit 2; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

# Peers for the side-by-side benchmarks, in an environment of their own. This release of PyTorch has
# a CPU build for Linux under its plain version; choose another with `make TORCH=... bench`.
TORCH ?= torch==2.13.0

bench: .venv/installed .bench-venv/installed
	$(BIN)/python benchmarks/run.py --peers .bench-venv/bin/python
	$(BIN)/python benchmarks/solvers.py --peers .bench-venv/bin/python
	$(BIN)/python benchmarks/scaling.py --peers .bench-venv/bin/python
	$(BIN)/python benchmarks/profile_step.py

.bench-venv/installed:
	$(PYTHON) -m venv .bench-venv
	.bench-venv/bin/python -m pip install --quiet '$(TORCH)' numpy scipy
	.bench-venv/bin/python -m pip install --quiet torchdiffeq pot
	# TorchCFM asks for Lightning and more for its examples; the library needs only these.
	.bench-venv/bin/python -m pip install --quiet --no-deps torchcfm
	-.bench-venv/bin/python -m pip install --quiet jax diffrax  # where there are wheels for it
	@touch $@
