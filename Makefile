# Everything a newcomer and CI need. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests are short and many: one thread each, one process a core.
export OMP_NUM_THREADS ?= 1
WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint format constraints clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv with the tested versions (does nothing when it is up to date)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"flexlora needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)
	@echo "Ready. Try: $(BIN)/flexlora-run --help"

# Shown at the end of the demo, and where `make demo` is run again everything is there already.
DEMO := task=glue/cola method=lora,flexlora scale=tiny
demo: $(STAMP) ## Train LoRA and FlexLoRA offline and print their table (a few minutes)
	$(BIN)/flexlora-run -m $(DEMO)
	@echo
	$(BIN)/flexlora-report outputs/tiny
	@echo
	@echo "Each run's record lies under outputs/tiny/glue/cola/deberta_v3_base/<method>/default/seed0: result.json first."
	@echo "Next, the same on your own data and encoder:"
	@echo "  $(BIN)/flexlora-run task=glue/cola method=flexlora model=local model.path=DIR task.data_dir=DIR"

# The paper's tables: each target runs what is missing, never what is done, and writes outputs/tables/<name>.{md,csv,tex,html}.
#   make table1 SCALE=tiny SEEDS=0,1,2      make table4 DRY=1      make tables OVERRIDES="task.data_dir=DIR"
SCALE ?= paper
SEEDS ?= 0,1,2
OVERRIDES ?=
RUNS ?= outputs
SWEEP = $(BIN)/flexlora-run -m scale=$(SCALE) 'seed=$(SEEDS)' output_root=$(RUNS) $(if $(DRY),dry=true) $(OVERRIDES)
# The rows that the ablations share with Table 1.
BESIDE := experiment=glue+method=full,adalora,flexlora
GLUE_ABLATIONS := table4 table5 table6 table15
TABLES := table1 table2 table3 $(GLUE_ABLATIONS) table16

.PHONY: tables list $(TABLES)
tables: $(TABLES) ## Run and write every table (SCALE=tiny SEEDS=0,1,2 OVERRIDES=… DRY=1)

list: ## Say which runs of the tables are done, failed or missing, and how long the rest takes
	@$(MAKE) --no-print-directory tables DRY=1 SCALE=$(SCALE) SEEDS=$(SEEDS) RUNS=$(RUNS) OVERRIDES='$(OVERRIDES)'

# $(call table,<the report's name>,<sweeps>): a run that fails does not keep the others' table from being written.
define table
@code=0; $(foreach sweep,$(2),$(SWEEP) $(subst +, ,$(sweep)) || code=$$?;) \
  $(if $(DRY),,$(BIN)/flexlora-report $(RUNS) --table $(1) --save outputs/tables || code=$$?;) exit $$code
endef

table1: $(STAMP) ## Table 1: GLUE
	$(call table,glue,experiment=glue)

table2: $(STAMP) ## Table 2: Commonsense170K
	$(call table,commonsense,experiment=commonsense170k)

table3: $(STAMP) ## Table 3: VTAB-1K
	$(call table,vtab,experiment=vtab)

table16: $(STAMP) ## Table 16: VTAB-1K in its second setting
	$(call table,vtab_table16,experiment=vtab_table16)

# Tables 4, 5, 6 and 15
$(GLUE_ABLATIONS): $(STAMP)
	$(call table,glue_$@,$(BESIDE) experiment=$@)

test: $(STAMP) ## Run all tests (sets up first)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test-fast: $(STAMP) ## Run all but the slow end-to-end checks
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m 'not slow'

lint: $(STAMP) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(STAMP) ## Write the installed versions to constraints.txt, as the tested set
	@{ echo "# The tested set of versions: pip install -c constraints.txt -e '.[dev]'. Made by make constraints."; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel|flexlora)\b|^#|@ ' ; } > constraints.txt

clean: ## Remove caches and build output (keeps .venv and outputs)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
