# `make` runs every check. `make demo` and `make test` need nothing but Python >= 3.10: they make .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := check
.PHONY: check demo test test-gpu lint types install help

check: lint types test  ## lint, format, types and tests (the default)

demo: $(VENV)/.installed  ## export the bundled detector, run it on a conveyor video, measure its AP
	@echo "== 1/3 export: assets/conveyor.pt -> output/demo/model.onnx, compared with PyTorch"
	$(BIN)/python export/to_onnx.py --weights assets/conveyor.pt --output output/demo/model.onnx
	@echo "== 2/3 run: the ONNX file on a video of a conveyor belt (made on first use)"
	$(BIN)/python runtime/run_video.py --engine output/demo/model.onnx --output output/demo/conveyor.mp4
	@echo "== 3/3 evaluate: AP of the checkpoint and of the ONNX file on held-out images"
	$(BIN)/python runtime/evaluate.py assets/conveyor.pt output/demo/model.onnx --output output/demo/evaluation
	@echo "== written to output/demo:" && find output/demo -type f | sort

test: $(VENV)/.installed-dev  ## make .venv, install, run all tests
	@echo "== tests, $$(nproc 2>/dev/null || echo 2) processes"
	$(BIN)/python -m pytest -n auto --dist loadscope -m "not gpu" $(PYTEST_ARGS)

test-gpu: $(VENV)/.installed-dev  ## the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## ruff: lint rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy
	$(BIN)/mypy

install: $(VENV)/.installed-dev  ## make .venv with everything in it and the `edgercnn` command
	$(INSTALL) --no-deps --editable .

$(VENV)/bin/python:
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.txt
	@echo "== installing requirements.txt (PyTorch is large: some minutes the first time)"
	$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python requirements.txt requirements-dev.txt
	@echo "== installing requirements-dev.txt (PyTorch is large: some minutes the first time)"
	$(INSTALL) -r requirements-dev.txt
	@touch $(VENV)/.installed $@

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12
