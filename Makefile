# make compare   sets up .venv, runs the main job, writes results/nmes1988
# make test      sets up .venv, runs every test; with COVERAGE=1 it fails below 90 % of branches in the engine
# make bench     sets up .venv, writes results/benchmarks.md (twenty minutes; 6 GB of disk for a while)
# make bench-check  measures again and fails where a ratio is over 20 % worse than the one in results/benchmarks.json
# The first two do again only what a change calls for; `make -B test` runs the tests again.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
MAIN   := results/nmes1988

# Threads that wait by spinning make every product ten times slower where another process wants their core.
export OMP_WAIT_POLICY ?= PASSIVE

sources := pyproject.toml README.md $(shell find counts models inference suite -type f -not -name '*.pyc')
checks  := $(shell find tests notebooks benchmarks -type f -not -name '*.pyc' 2>/dev/null)

.PHONY: help compare test bench bench-check browser lint types format clean

help:
	@sed -n 's/^# //p' $(firstword $(MAKEFILE_LIST))

compare: $(MAIN)/report.html
	@echo "==> the report is $(MAIN)/report.html"

$(MAIN)/report.html: $(VENV)/installed
	@echo "==> comparing the methods on nmes1988 with three components (a few minutes)"
	$(BIN)/zipmix compare nmes1988 -k 3 --output $(MAIN) --overwrite

test: $(VENV)/tested
	@echo "==> all tests have passed on this tree"

$(VENV)/tested: $(VENV)/installed $(checks)
	@echo "==> running every test (about a quarter of an hour)"
ifdef COVERAGE
	$(BIN)/python -m coverage run -m pytest
	@for folder in counts models inference; do \
		echo "==> branches of $$folder/ that the tests cover"; \
		$(BIN)/python -m coverage report --fail-under=90 --include="*/zipmix/$$folder/*" || exit 1; \
	done
else
	$(BIN)/python -m pytest
endif
	@touch $@

browser: $(VENV)/installed $(VENV)/browser
	@echo "==> the pages in a real browser"
	$(BIN)/python -m pytest tests/browser

$(VENV)/browser: $(VENV)/dependencies
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ echo "make browser needs Chromium or Chrome on the PATH; install it (Debian: apt-get install chromium)"; exit 2; }
	@echo "==> installing what drives the browser"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[browser]'
	@touch $@

bench: $(VENV)/installed $(VENV)/peers
	@echo "==> measuring speed and memory (about twenty minutes)"
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/samplers.py

bench-check: $(VENV)/installed $(VENV)/peers
	@echo "==> measuring the ratios again (a few minutes)"
	$(BIN)/python benchmarks/speed.py --check

$(VENV)/peers: $(VENV)/dependencies | $(VENV)/installed
	@echo "==> installing the programs to measure beside (a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[bench]'
	@touch $@

lint: $(VENV)/installed
	@echo "==> lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	@echo "==> types"
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: $(VENV)/dependencies $(sources)
	@echo "==> installing zipmix into $(VENV)"
	@rm -rf build/lib build/bdist.*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	@touch $@

$(VENV)/dependencies: pyproject.toml constraints.txt
	@echo "==> making $(VENV) and installing what zipmix needs, as pinned in constraints.txt (a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
