# `make` alone lists the targets, by the comments behind them
PYTHON ?= python3
BIN = .venv/bin

help:
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1: \2/p' $(firstword $(MAKEFILE_LIST))

lab: export JUPYTER_CONFIG_PATH := $(CURDIR)/jupyter$(if $(JUPYTER_CONFIG_PATH),:$(JUPYTER_CONFIG_PATH))
lab: .venv/ready  ## open the walkthrough in JupyterLab
	$(BIN)/jupyter lab notebooks/00-start-here.ipynb

# two workers with one thread each: threads of two workers on one core wait for each other
test: export OMP_NUM_THREADS = 1
test: .venv/ready  ## run everything: lint, tests, every notebook
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 --dist loadfile tests
	$(BIN)/pytest -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=900 \
		-n 2 --dist loadfile notebooks

figures: .venv/ready  ## draw every picture and table of results again
	$(BIN)/vaelib figures

copies: .venv/ready  ## write the notebooks' copies for students and for instructors
	$(BIN)/python -m vaelib.exercises

bench: .venv/ready  ## measure speed, half an hour
	$(BIN)/python benchmarks/bench.py

bench-full: .venv/ready  ## measure all of it, 2 hours
	$(BIN)/python benchmarks/bench.py --full

# made once, and again only when the list of dependencies changes; what is installed in .venv
# already (another build of PyTorch, say) is kept
.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vaelib needs Python 3.11 or newer: make PYTHON=python3.11 lab"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python has no venv module: on Debian or Ubuntu, apt install python3-venv"; exit 1; }
	@echo "installing PyTorch, JupyterLab and what they need into .venv, once: minutes, and on"
	@echo "Linux some 3 GB to download, 6.4 GB on disk (PyTorch brings CUDA; less elsewhere)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

.PHONY: help lab test figures copies bench bench-full
