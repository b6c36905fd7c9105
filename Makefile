# `make` alone lists the targets. The first target that needs it makes .venv and
# installs everything there; later runs find it ready and start at once.
#
# PYTHON  the interpreter to make .venv with; by default the first of PYTHONS that
#         runs and is new enough
# ARGS    more arguments for pytest (make test, make test-exhaustive),
#         benchmarks.compare (make bench) or benchmarks.gpu_compile (make gpu-compile)

PYTHON ?=
PYTHONS := python3.13 python3.12 python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RESULTS := results

# An environment with XLA's CUDA compiler, which needs no GPU.
GPU_VENV := .venv-gpu
GPU_BIN := $(GPU_VENV)/bin
GPU_READY := $(GPU_VENV)/.ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help bench gpu-compile gpu-test test test-exhaustive lint format typecheck wheel \
    test-wheel bazel-test clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

bench: $(READY)  ## compare the implementations here, and train the example with them
	@mkdir -p $(RESULTS)
	@$(BIN)/python -m benchmarks.compare $(ARGS)
	@$(BIN)/python -m examples.image_classifier
	@echo "The report lies in $(CURDIR)/$(RESULTS)/."

gpu-compile: $(GPU_READY)  ## compile everything for an NVIDIA H200; needs no GPU
	@$(GPU_BIN)/python -m benchmarks.gpu_compile $(ARGS)

gpu-test: $(GPU_READY)  ## run the tests of gpu-compile that need the CUDA compiler
	@$(GPU_BIN)/python -m pytest $(ARGS) \
	    tests/benchmarks/test_aot.py tests/benchmarks/test_gpu_compile.py \
	    tests/benchmarks/test_training_memory.py \
	    tests/pallas_kernels/test_fused_compiled.py \
	    tests/pallas_kernels/test_strided_compiled.py \
	    tests/pallas_kernels/test_compiled.py

test: $(READY)  ## run the tests against the sources
	@$(BIN)/python -m pytest -n 2 -m "not exhaustive" $(ARGS)

test-exhaustive: $(READY)  ## run them in all sizes, dtypes and layouts
	@$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(READY)  ## check the code's style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(READY)  ## put the code in the style that `make lint` asks for
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

typecheck: $(READY)  ## check the types
	@$(BIN)/mypy

wheel: $(READY)  ## build the wheel, in dist/
	@echo "building the wheel ..."
	@rm -rf dist
	@$(BIN)/python -m build --quiet --wheel --outdir dist >/dev/null
	@ls dist/*.whl

# The copy has the tests but not the library, which can then only be the wheel's. What
# the wheel does not hold is tested by `make test` alone.
# Kernels take minutes to interpret and are no different in a wheel; that they are in it
# is seen by the tests of the implementations.
test-wheel: wheel  ## run the tests against the built wheel, in a clean environment
	@set -e; \
	tmp=$$(mktemp -d); \
	trap 'rm -rf "$$tmp"' EXIT; \
	trap 'exit 130' INT TERM; \
	mkdir "$$tmp/suite"; \
	cp -R tests benchmarks examples BUILD MODULE.bazel README.md CONTRIBUTING.md \
	    constraints.txt constraints-gpu.txt pyproject.toml "$$tmp/suite"; \
	echo "installing the wheel in a clean environment, takes about a minute ..."; \
	$(BIN)/python -m venv "$$tmp/venv"; \
	wheel=$$(echo "$$PWD"/dist/*.whl); \
	"$$tmp/venv/bin/python" -m pip install -qq -c constraints.txt "$${wheel}[test]"; \
	cd "$$tmp/suite"; \
	"$$tmp/venv/bin/python" -c "import sys, butterjax, pallas_kernels; \
	sys.exit(not all(m.__file__.startswith(sys.prefix) for m in (butterjax, pallas_kernels)))" \
	    || { echo "error: the tests would not run against the wheel" >&2; exit 1; }; \
	"$$tmp/venv/bin/python" -m pytest -n 2 -m "not exhaustive" -p no:cacheprovider \
	    --ignore=tests/benchmarks --ignore=tests/examples --ignore=tests/pallas_kernels

bazel-test:  ## run the tests with Bazel, which must be installed
	@command -v bazel >/dev/null || { \
	    echo "error: no bazel on the PATH; Bazel 7.4 or newer is needed" >&2; exit 1; }
	@bazel test //:all

clean:  ## remove .venv, .venv-gpu, builds, caches, and results/
	@rm -rf $(VENV) $(GPU_VENV) build dist $(RESULTS) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment: $(1) is its folder, $(2) what pip installs, $(3) how long it takes.
# $(1)/.ready is touched last, so an interrupted install leaves none; without one the
# environment is made anew.
define make-venv
	@set -e; \
	fresh() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' \
	    >/dev/null 2>&1 </dev/null; }; \
	if ! [ -f $(1)/.ready ] || ! fresh $(1)/bin/python; then \
	    python=; \
	    if [ -n "$(PYTHON)" ]; then \
	        fresh "$(PYTHON)" && python="$(PYTHON)"; \
	        tried="$(PYTHON)"; \
	    else \
	        for p in $(PYTHONS); do \
	            if fresh "$$p"; then python="$$p"; break; fi; \
	        done; \
	        tried="$(PYTHONS)"; \
	    fi; \
	    if [ -z "$$python" ]; then \
	        echo "error: Python 3.12 or newer is needed, and none was found (tried: $$tried);" \
	            "install one, or name it: make PYTHON=/path/to/python" >&2; \
	        exit 1; \
	    fi; \
	    if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	        echo "error: $$python lacks the venv module;" \
	            "install it (on Debian and Ubuntu: python3-venv)" >&2; \
	        exit 1; \
	    fi; \
	    echo "setting up $(1) with $$("$$python" --version), takes about $(3) ..."; \
	    rm -rf $(1); \
	    "$$python" -m venv $(1); \
	else \
	    echo "updating $(1) ..."; \
	    rm -f $(1)/.ready; \
	fi; \
	$(1)/bin/python -m pip install -qq $(2); \
	touch $(1)/.ready
endef

$(READY): pyproject.toml constraints.txt
	$(call make-venv,$(VENV),-c constraints.txt -e '.[dev]',a minute)

$(GPU_READY): pyproject.toml constraints.txt constraints-gpu.txt
	$(call make-venv,$(GPU_VENV),-c constraints.txt -r constraints-gpu.txt \
	    -e '.[test]',two minutes)
