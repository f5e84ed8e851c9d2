# Every target sets up what it needs first: a fresh clone can start with any of them.
#   VENV=path    another environment (kept outside the clone by .ci/run)
#   PYTHON=path  another interpreter, 3.11 or newer
#   ARGS="…"     passed on to the benchmarks, or to pytest in place of SUITE: ARGS="-m slow"
#   PLAN=path    what make ablation runs, if not benchmarks/ablation/movielens-1m.yaml
#   QUICK=1      bench-peers on MovieLens-100K, DATA=path the folder above the data sets

VENV ?= .venv
PYTHON ?= python3
ARGS ?=
PLAN ?=
QUICK ?=
DATA ?= ../shared/data

# The whole suite: a worker a core, four at most; files whole, as their tests share what they made.
SUITE := --numprocesses=auto --maxprocesses=4 --dist=loadfile

BIN := $(VENV)/bin
# A changed requirement gives another stamp, so the environment follows the two files by itself.
STAMP := $(VENV)/.mmrec-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

# Whatever clone an environment was installed from, the code of this one is used.
export PYTHONPATH := $(CURDIR)

.PHONY: install demo test check bench bench-peers bench-speed ablation cut sparsity few-shot signals transfer variety feedback languages bench-search format

install: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmrec needs Python 3.11 or newer: make PYTHON=path")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	rm -f $(VENV)/.mmrec-*
	touch $@

demo: install
	$(BIN)/mmrec demo --out demo

test: install
	$(BIN)/python -m pytest $(or $(ARGS),$(SUITE))

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-peers: install
	$(BIN)/python -m benchmarks.peers.run $(if $(QUICK),--quick) --data "$(DATA)" $(ARGS)

bench-speed: install
	$(BIN)/python -m benchmarks.peers.throughput --data "$(DATA)" $(ARGS)

ablation: install
	$(BIN)/python -m benchmarks.ablation.run $(if $(PLAN),--plan "$(PLAN)") --data "$(DATA)" $(ARGS)

cut: install
	$(BIN)/python -m benchmarks.cut.run --data "$(DATA)" $(ARGS)

sparsity: install
	$(BIN)/python -m benchmarks.sparsity.run $(ARGS)

few-shot: install
	$(BIN)/python -m benchmarks.few_shot.run --data "$(DATA)" $(ARGS)

signals: install
	$(BIN)/python -m benchmarks.signals.run $(ARGS)

transfer: install
	$(BIN)/python -m benchmarks.transfer.run $(ARGS)

variety: install
	$(BIN)/python -m benchmarks.variety.run $(ARGS)

feedback: install
	$(BIN)/python -m benchmarks.feedback.run $(ARGS)

languages: install
	$(BIN)/python -m benchmarks.languages.run --data "$(DATA)" $(ARGS)

bench-search: install
	$(BIN)/python -m benchmarks.search.run --data "$(DATA)" $(ARGS)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/tree.py
