# ist_hpc: `make help` lists the targets; INSTALL.md says more.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup wheelhouse ready train test test-quick test-serial test-mpi2 check fuzz lint docs format clean distclean

export SETUP_VENV ?= .venv
VENV := $(CURDIR)/$(SETUP_VENV)
REPORTS := $(CURDIR)/.cache/reports
NP ?= 4
DIR ?= wheelhouse
ARGS ?=
RANKS := 1 2 3 4
CASES ?= 1000000
FILES ?= 10000
SEED ?= 0
MPI2 ?= mpich
# seconds, after which a hanging run is stopped, and killed if it does not stop
SERIAL_TIMEOUT ?= 1800
MPI_TIMEOUT ?= 600
CHECK_TIMEOUT ?= 450

# Of the serial tests, in the order and the groups of tests/conftest.py: much of a launch is waiting.
THREE_AT_A_TIME := -n 3 --dist loadscope --no-loadscope-reorder

# One environment for everything below: .venv first, and what Open MPI needs in a container or on a
# machine with fewer cores than ranks, where a rank that spins takes the core another one needs.
export PATH := $(VENV)/bin:$(PATH)
export PYTHONNOUSERSITE := 1
export SITE_PYTHONPATH := $(PYTHONPATH)
unexport PYTHONPATH
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
ifneq ($(shell test $$(nproc) -lt 4 && echo few),)
export OMPI_MCA_mpi_yield_when_idle := 1
export MPIR_CVAR_POLLS_BEFORE_YIELD := 1
endif
# `MPI` may be set in a cluster's environment and mean something else: only `make setup MPI=...` counts
export SETUP_MPI := $(if $(filter command,$(firstword $(origin MPI))),$(MPI))

# One thread a rank: the machine may have few cores, and results must not depend on their number.
# Bytecode is kept, or each of a thousand starts would compile the package again. Horovod's threads
# ask each other every 4 ms and not every one, which takes most of a core though nothing is averaged.
TEST_ENV := env OMP_NUM_THREADS=1 HOROVOD_CYCLE_TIME=4 HOROVOD_STALL_SHUTDOWN_TIME_SECONDS=60 PYTHONDONTWRITEBYTECODE=

# What tests leave besides their words; the rest of the checkout may be read-only.
HAVE_REPORTS = mkdir -p "$(REPORTS)" 2>/dev/null && [[ -w "$(REPORTS)" ]] || { \
	echo "make $@: $(REPORTS) cannot be written to; name a folder that can: make $@ REPORTS=FOLDER" >&2; exit 1; }
HAVE_CHECKOUT = test -w . || { echo "make $@: $(CURDIR) cannot be written to" >&2; exit 1; }
NO_CACHES := $(shell test -w . || echo env RUFF_NO_CACHE=true MYPY_CACHE_DIR=/dev/null)

help: ## list the targets
	@sed -nE 's/^([a-z%-]+): [^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | \
		while IFS=$$'\t' read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done
	@echo '  variables: PYTHON=python3.11 TORCH_VERSION=2.13.0 TORCH_INDEX=https://... MPI=path|wheel'
	@echo '             WHEELHOUSE=wheelhouse SYSTEM_TORCH=1 HOROVOD=no (setup); FOR=3.12 (wheelhouse)'
	@echo '             NP=4 ARGS="--set train.epochs=3" (train)'

setup: ## make the environment, .venv, or finish making it
	@tools/setup.sh

wheelhouse: ## collect what setup needs into DIR, for where there is no network
	@tools/wheelhouse.sh "$(DIR)"

ready:
	@tools/setup.sh --quiet

# where setup was told HOROVOD=no, mpirun does it
train: ready ## set up, then horovodrun -np 4 python -m ist_hpc.train with ARGS
	$(if $(wildcard $(VENV)/bin/horovodrun),horovodrun,tools/mpirun.sh) -np $(NP) python -m ist_hpc.train $(ARGS)

test: ready ## set up, then all tests: serially, then on 1, 2, 3 and 4 ranks
	@$(HAVE_REPORTS); rm -f "$(REPORTS)"/{serial.xml,mpi-*}
	@failed=; for target in test-serial $(RANKS:%=test-%); do \
		$(MAKE) --no-print-directory $$target || failed="$$failed $$target"; \
	done; \
	python tools/no_skips.py --allow-skips "$(REPORTS)" || failed="$$failed (see above)"; \
	if [[ -n $$failed ]]; then echo "make test: failed:$$failed"; exit 1; fi

test-quick: ready ## of the tests what needs no cluster, no hosts and few ranks
	@echo "---- quick tests of one process"; $(TEST_ENV) tools/limit.sh $(MPI_TIMEOUT) \
		python -m pytest tests --ignore=tests/mpi -m "not long" $(THREE_AT_A_TIME) -q
	@$(MAKE) --no-print-directory test-2 REPORTS=$(REPORTS)/quick

test-serial: ready ## the tests that need one process only
	@echo "---- tests of one process"; $(HAVE_REPORTS); rm -f "$(REPORTS)/serial.xml"; \
	$(TEST_ENV) tools/limit.sh $(SERIAL_TIMEOUT) \
		python -m pytest tests --ignore=tests/mpi $(THREE_AT_A_TIME) -rs --junitxml="$(REPORTS)/serial.xml"

test-%: ready ## the tests of tests/mpi on so many ranks: test-1 ... test-4
	@echo "---- tests of $* ranks"; $(HAVE_REPORTS); rm -f "$(REPORTS)"/mpi-$*-rank*; rc=0; \
	REPORT="$(REPORTS)/mpi-$*" $(TEST_ENV) tools/limit.sh $(MPI_TIMEOUT) \
		tools/mpirun.sh --quiet -np $* tools/rank_pytest.sh tests/mpi -rs || rc=$$?; \
	if ((rc)); then tools/rank_pytest.sh --failed "$(REPORTS)/mpi-$*"; fi; exit $$rc

test-mpi2: ## the tests of several ranks with Debian's MPICH, in .venv-mpi2: MPI2=mpich (or openmpi)
	@tools/with_mpi.sh $(MPI2) env SETUP_VENV=.venv-mpi2 $(MAKE) --no-print-directory \
		setup MPI=path check $(RANKS:%=test-%) REPORTS=$(CURDIR)/.cache/reports-mpi2

check: ready ## do Horovod, MPI and HDF5 work here, started in every way? ends with "check: ok"
	@OMP_NUM_THREADS=1 OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none \
		tools/limit.sh $(CHECK_TIMEOUT) python -m ist_hpc.check_starts

fuzz: ready ## hostile text, checkpoints and shards, properties by further examples: CASES=1000000 FILES=10000 SEED=0
	python tests/helpers/fuzz_files.py --cases $(FILES) --seed $(SEED)
	python tests/helpers/fuzz_xmc.py --cases $(CASES) --seed $(SEED)
	HYPOTHESIS_PROFILE=search python -m pytest -q $$(grep -rl "^from hypothesis" tests --include="test_*.py")

lint: ready ## ruff, mypy, shellcheck
	$(NO_CACHES) ruff check .
	$(NO_CACHES) ruff format --check .
	$(NO_CACHES) mypy
	find . -path './.*' -prune -o \( -name '*.sh' -o -name '*.sbatch' \) -print0 | \
		xargs -0 shellcheck .ci/run

docs: ## make a site of docs/ in .cache/site, with mkdocs in an environment of its own
	@test -x .cache/docs/bin/mkdocs || { python3 -m venv .cache/docs && \
		.cache/docs/bin/python -m pip install --quiet -r tools/requirements-docs.txt; }
	@NO_MKDOCS_2_WARNING=1 .cache/docs/bin/mkdocs build --strict --quiet
	@echo "docs: .cache/site/index.html"

format: ready ## put the code into ruff's format
	@$(HAVE_CHECKOUT)
	ruff check --fix .
	ruff format .

clean: ## remove what runs of the tools left; keep .venv and the built wheels
	@$(HAVE_CHECKOUT)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf .cache/reports .cache/logs .cache/build .cache/pip
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv and the built wheels too
	rm -rf .venv .venv-mpi2 .cache
