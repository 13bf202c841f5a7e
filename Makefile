# `make demo` trains, exports and runs the demo in demo/; `make test` checks everything. Needs Python >= 3.10 and a C++
# compiler; the rest, CMake included, comes from pip into .venv.
PYTHON ?= python3
BIN := .venv/bin
# What an editable install bakes in; every Python and data file is read from the checkout itself.
BUILT_FROM := pyproject.toml CMakeLists.txt $(wildcard kernels/cpu/*)

.PHONY: help demo test clean

help:
	@echo "make demo   train, export and run the built-in demo set in demo/"
	@echo "make test   lint, then the fast and the slow tests, with coverage"
	@echo "make clean  remove what these made, except .venv"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "hpedge needs Python 3.10 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/installed-run: $(BUILT_FROM) | $(BIN)/python
	$(BIN)/python -m pip install -e '.[train,export]'
	touch $@

.venv/installed-dev: $(BUILT_FROM) | $(BIN)/python
	$(BIN)/python -m pip install -e '.[train,export,rtx,openvino,serve,dev]'
	touch $@ .venv/installed-run

demo: .venv/installed-run
	mkdir -p demo
	cd demo && ../$(BIN)/hpedge train > metrics.txt
	cd demo && ../$(BIN)/hpedge export --fp16
	cd demo && ../$(BIN)/hpedge infer images --overlay overlays
	@cat demo/metrics.txt
	@echo "an overlay picture: $$(ls demo/overlays/*.png | head -n 1)"

# The Python half of two TensorRTs, without TensorRT itself, for tests/test_qdp_head.py, which skips, saying so, where
# pip has none for this system. They cannot be installed side by side.
.venv/contract/%: | $(BIN)/python
	rm -rf $@.partial
	$(BIN)/python -m pip install -q --no-deps --only-binary :all: --target $@.partial 'tensorrt_cu13_bindings==$*.*' \
	  && mv $@.partial $@ || echo "no TensorRT bindings $* from pip: their contract tests are skipped"

test: .venv/installed-dev .venv/contract/10.16 .venv/contract/11.4
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --cov --cov-report=
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow --cov --cov-append --cov-fail-under=85

clean:
	rm -rf build dist demo .coverage .pytest_cache .ruff_cache .hypothesis
	find hpdval_edge kernels training export tests -name __pycache__ -prune -exec rm -rf {} +
