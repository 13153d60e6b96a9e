# Everything runs in .venv, made from $(PYTHON): any Python 3.10+. Stamps in it make a second run quick.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
# For use on this machine: CUDA kernels only where a GPU can run them (`make cuda` compiles them anywhere).
FASTROBUST_CUDA ?= $(if $(shell command -v nvidia-smi),auto,0)
NATIVE := setup.py CMakeLists.txt $(shell find cmake csrc -type f)
C_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test lint format types stubs bench cuda emulate sanitize gpu wheel wheel-test clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 10) else "fastrobust needs Python 3.10 or newer, got " + v + "; use: make PYTHON=python3.12 ...")'
	@echo "== virtual environment in .venv"
	$(PYTHON) -m venv .venv

# The build requirements of pyproject.toml, in .venv: building there without isolation is incremental.
.venv/tools.stamp: constraints.txt | $(BIN)/python
	@echo "== build tools"
	$(PIP) setuptools cmake ninja pybind11
	@touch $@

.venv/native.stamp: $(NATIVE) .venv/tools.stamp
	@echo "== native kernels"
	FASTROBUST_CUDA=$(FASTROBUST_CUDA) $(BIN)/python setup.py -q build_ext --inplace
	@touch $@

.venv/demo.stamp: pyproject.toml constraints.txt .venv/tools.stamp
	@echo "== fastrobust and what the demo needs"
	FASTROBUST_CUDA=$(FASTROBUST_CUDA) $(PIP) --no-build-isolation -e '.[demo]'
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt .venv/tools.stamp
	@echo "== fastrobust and what its tests and benchmarks need"
	FASTROBUST_CUDA=$(FASTROBUST_CUDA) $(PIP) --no-build-isolation -e '.[demo,dev,bench]'
	$(PIP) --no-deps torchattacks  # it asks for torchvision, which the attacks do not use
	@touch $@

demo: .venv/native.stamp .venv/demo.stamp  ## train four classifiers, attack and certify them, write out/report.html
	$(BIN)/fastrobust demo

test: .venv/native.stamp .venv/dev.stamp  ## the test suite; PYTEST_ARGS="-k pgd" selects
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

lint: .venv/dev.stamp  ## ruff and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

format: .venv/dev.stamp  ## what ruff and clang-format can mend by themselves
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

types: .venv/native.stamp .venv/dev.stamp  ## mypy, and _C.pyi against the compiled module
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fastrobust._C --allowlist tools/stubtest.txt --mypy-config-file pyproject.toml

bench: .venv/native.stamp .venv/dev.stamp  ## native, reference, torch.compile and public peers side by side
	$(BIN)/python -m benchmarks

cuda: .venv/tools.stamp  ## compile every .cu file; elementwise kernels must not spill registers
	bash tools/compile_cuda.sh

emulate: .venv/native.stamp .venv/dev.stamp  ## the CUDA kernels on the CPU against the CPU kernels; planted faults must be found
	bash tests/emulation/run.sh plain
	bash tests/emulation/run.sh mutants

sanitize: .venv/native.stamp .venv/dev.stamp  ## emulated kernels and random tapes under AddressSanitizer, UBSan, ThreadSanitizer
	bash tests/emulation/run.sh asan
	bash tests/emulation/run.sh tsan
	bash tests/engine/run.sh asan
	bash tests/engine/run.sh tsan

gpu:  ## on a machine with a GPU: build against the torch of $(PYTHON), test, measure; no network needed
	$(PYTHON) benchmarks/gpu.py

wheel: | $(BIN)/python  ## a wheel in dist/, built in isolation
	$(BIN)/python -m pip --disable-pip-version-check wheel . --no-deps -w dist

wheel-test: .venv/dev.stamp  ## wheels and installations, with and without compilers (minutes)
	$(BIN)/python -m pytest tests/install

clean:  ## everything built; .venv stays
	rm -rf build dist out *.egg-info fastrobust/*.so fastrobust/_build_info.py .venv/native.stamp .venv/demo.stamp .venv/dev.stamp
