# make lab: open the walkthrough; make test: run everything; make figures: redraw every picture;
# make bench: measure speed (25 minutes), make bench-full: all of it (2 hours)
PYTHON ?= python3
BIN = .venv/bin

lab: export JUPYTER_CONFIG_PATH := $(CURDIR)/jupyter$(if $(JUPYTER_CONFIG_PATH),:$(JUPYTER_CONFIG_PATH))
lab: .venv/ready
	$(BIN)/jupyter lab notebooks/00-start-here.ipynb

# two workers with one thread each: threads of two workers on one core wait for each other
test: export OMP_NUM_THREADS = 1
test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 --dist loadfile tests
	$(BIN)/pytest -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
		-n 2 --dist loadfile notebooks

figures: .venv/ready
	$(BIN)/vaelib figures

bench: .venv/ready
	$(BIN)/python benchmarks/bench.py

bench-full: .venv/ready
	$(BIN)/python benchmarks/bench.py --full

# made once, and again only when the list of dependencies changes; what is installed in .venv
# already (another build of PyTorch, say) is kept
.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vaelib needs Python 3.11 or newer: make PYTHON=python3.11 lab"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python has no venv module: on Debian or Ubuntu, apt install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

.PHONY: lab test figures bench bench-full
