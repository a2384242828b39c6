# make train       a virtual environment, the requirements, and the demo: digits, some minutes
# make test        the quick tests        make test-all     the slow ones too
# make lint        ruff, the import rules, types of the public face
# make docs        the documentation as a site, in site/
# make test-tpu    the quick tests that ask the TPU's compiler, which needs no TPU
# make test-newest quick tests on the newest Python at hand with the newest JAX, without torch: of what
#                  stands on other libraries' interfaces

PYTHON ?= python3
VENV ?= .venv
NEWEST_VENV ?= .venv-newest
NEWEST_PYTHON ?= $(shell sh tools/newest_python.sh)
# PyTorch is the judge of conversions and twins; CPU wheels of this version are widely at hand.
TORCH ?= torch==2.13.0
PYTEST = -m pytest -n 2 --dist worksteal
TPU_TESTS = tests/kernels/test_tpu_compiler.py tests/planning/test_tpu_program.py \
	tests/planning/test_command.py
# Arithmetic in arrays (attention/, diffusion/, layers/, metrics/, moe/), and what is made of the rest
# (encoding/, evaluation/, docs/, notebooks/), is tested on one Python alone.
NEWEST_TESTS = tests/data tests/kernels tests/models tests/parallel tests/storage tests/training \
	$(wildcard tests/test_*.py)

.PHONY: train test test-all test-tpu test-newest lint docs clean

train: $(VENV)/.runtime
	$(VENV)/bin/python train.py configs/digits.py

test: $(VENV)/.test
	$(VENV)/bin/python $(PYTEST) -m "not slow"

test-all: $(VENV)/.test
	$(VENV)/bin/python $(PYTEST)

# Apart from the environment: with libtpu in it, JAX would look for TPUs whenever it starts.
test-tpu: $(VENV)/.libtpu
	PYTHONPATH=$(VENV)/libtpu $(VENV)/bin/python -m pytest -m "not slow" $(TPU_TESTS)

test-newest: $(NEWEST_VENV)/.newest
	$(NEWEST_VENV)/bin/python $(PYTEST) -m "not slow and not processes" $(NEWEST_TESTS)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.test: $(VENV)/.runtime pyproject.toml
	$(VENV)/bin/python -m pip install -q $(TORCH)
	$(VENV)/bin/python -m pip install -q -e ".[test,docs,notebooks,torch,peers]"
	# Its dependencies would bring another build of PyTorch.
	$(VENV)/bin/python -m pip install -q --no-deps torch-fidelity==0.4.0
	touch $@

$(VENV)/.libtpu: $(VENV)/.test tools/libtpu_requirement.py
	$(VENV)/bin/python -m pip install -q --no-deps --upgrade --target $(VENV)/libtpu \
		"$$($(VENV)/bin/python tools/libtpu_requirement.py)"
	touch $@

$(NEWEST_VENV)/.newest: requirements.txt pyproject.toml
	@test -n "$(NEWEST_PYTHON)" || { echo "no Python 3.12 or newer found: set NEWEST_PYTHON"; exit 1; }
	$(NEWEST_PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install -q --upgrade -r requirements.txt
	$(NEWEST_VENV)/bin/python -m pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST_VENV) .cache .mypy_cache build site *.egg-info
