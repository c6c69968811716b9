# Two commands do everything for a newcomer: `make demo` and `make test`. Both build .venv when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := moving-mnist-es-reservoir

.DEFAULT_GOAL := help
.PHONY: help demo test figures results benchmarks stability lint new clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp is written last, so an interrupted installation is taken up again by the next make.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	"$(BIN)/python" -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(STAMP)  ## train the main experiment on this machine (< 5 minutes on 2 CPU cores), draw figures and GIF
	cd $(DEMO) && "$(BIN)/python" moving_mnist_es_reservoir.py --seed 0 --preset laptop --device cpu --run-dir runs/demo --overwrite
	cd $(DEMO) && "$(BIN)/python" visualize_moving_mnist_es_reservoir.py --run runs/demo --out runs/demo
	cd $(DEMO) && "$(BIN)/python" make_moving_mnist_es_reservoir_gif.py --run runs/demo --out runs/demo
	@echo
	@echo "The run and its GIF are in $(DEMO)/runs/demo/, its figures in $(DEMO)/runs/demo/viz/"
	@echo "The committed results of all experiments are in RESULTS.md; what this one does is in $(DEMO)/README.md"

test: $(STAMP)  ## run the tests (CPU, about 10 minutes)
	"$(BIN)/python" -m pytest

figures: $(STAMP)  ## redraw every experiment's committed figures and GIF from its committed results
	"$(BIN)/python" -m common.catalog figures

results: $(STAMP)  ## write RESULTS.md anew from the committed result files
	"$(BIN)/python" -m common.catalog results

benchmarks: $(STAMP)  ## measure everything anew (a quarter of an hour; leave the machine alone) and write benchmarks/README.md
	"$(BIN)/python" benchmarks/run.py

STABILITY := torchrun resume stop run_folder stability bad_input fuzz cli
stability: $(STAMP)  ## prove docs/stability.md anew (a quarter of an hour) and write the counts into it
	"$(BIN)/python" -m pytest -m "not gpu" --record docs/stability.json $(STABILITY:%=tests/test_%.py)
	"$(BIN)/python" tools/stability_page.py

lint: $(STAMP)  ## check style and formatting with ruff
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

new: $(STAMP)  ## start an experiment from the template: make new NAME=my-idea
	@test -n "$(NAME)" || { echo "make: say what it is called: make new NAME=my-idea" >&2; exit 2; }
	"$(BIN)/python" -m common.catalog new "$(NAME)"

clean:  ## remove .venv and caches (runs/ and results/ stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
