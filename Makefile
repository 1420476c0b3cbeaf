# The two commands of the README, and what they stand on. Everything goes into .venv and results/.
PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/.ready
CORES  ?= all

# a worker a core of a small machine; tests of one file, or of one group, go to the same one
LANE   := --numprocesses 2 --dist loadgroup --durations 10
# says after a command how long it took
lane    = ( export PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; began=$$(date +%s); $(2); code=$$?; \
            echo "$(1): $$(($$(date +%s) - began)) s"; exit $$code )

.PHONY: demo report docs test test-all lint ranges reliability audit clean lock help
.DEFAULT_GOAL := help

help:            ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(READY)   ## the main job on the embedded synthetic world: Tables 1 and 2, Figures 1-6 in results/demo/
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" snakemake --cores $(CORES) --rerun-incomplete --show-failed-logs --quiet host
	@echo "Done: results/demo/tables/table1.md, results/demo/tables/table2.md, results/demo/figures/"

report: $(READY) ## one HTML file of everything that `make demo` made: results/demo/report.html
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" snakemake --report results/demo/report.html --quiet all
	@echo "Open results/demo/report.html in a browser"

test: $(READY)   ## lint the workflow and run the tests, two at a time
	@$(call lane,lint,$(MAKE) --no-print-directory lint)
	@$(call lane,tests but the longest,pytest $(LANE) -m "not long")

# its two calls of pytest share one run of the smoke preset
test-all: $(READY) ## and those that take longest: SLURM, a second run byte for byte, trainings in several processes
	@export VRM_SMOKE_RUN=$$(mktemp -d) && trap 'rm -rf "$$VRM_SMOKE_RUN"' EXIT && trap 'exit 130' INT TERM && \
	  $(MAKE) --no-print-directory test && $(call lane,longest tests,pytest $(LANE) -m long)

lint: $(READY)   ## ruff, snakefmt, snakemake --lint
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/snakefmt --check Snakefile workflow
# a stage's rules and their input functions stand in one file, which is the one thing that Snakemake would have otherwise
	@found=$$($(VENV)/bin/snakemake --lint 2>&1); [ -n "$$found" ] || { echo "snakemake --lint said nothing" >&2; exit 1; }; \
	  ! echo "$$found" | grep -E '^ +\* |Error|not found|No such' | grep -v 'Mixed rules and functions'

ranges: $(READY) ## whether pyproject.toml's ranges resolve, at their lower ends and at their upper ones (asks the package index)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" python tools/ranges.py

docs: $(READY)   ## the documentation site from docs/: results/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "Open results/site/index.html in a browser"

reliability: $(READY) ## kills, faults, fuzz, load, soak and audit again: docs/reliability.md (an hour)
	@$(VENV)/bin/python tools/reliability.py

audit: $(READY)  ## known weaknesses of the locked packages, where the database can be reached
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit || echo "pip-audit can't be had here" >&2
	@$(VENV)/bin/python tools/reliability.py --only audit && sed -n '/^## Packages/,$$p' docs/reliability.md

lock: $(READY)   ## write envs/*.yaml from requirements.lock
	@$(VENV)/bin/python tools/envs.py

clean:           ## remove the environment; results stay
	rm -rf $(VENV)

# requirements.lock pins every package; pip takes a CPU build of torch where one is offered, the CUDA build elsewhere
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; assert v >= (3, 11), "Python 3.11 or newer is needed, this is %d.%d; name another: make PYTHON=python3.12" % v[:2]'
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module does not work; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing the pinned packages into $(VENV) (a few minutes the first time) ..."
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev,workflow,judge,report,slurm,serve,docs,tensorboard]'
	@touch $@
