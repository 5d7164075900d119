# The commands for newcomers and for CI. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Many short tests: one process for each core, one thread in each process.
export OMP_NUM_THREADS ?= 1
WORKERS ?= auto

.DEFAULT_GOAL := help

# A misspelt variable (SEED=0) would be ignored, and another sweep than the wanted one would run.
VARIABLES := PYTHON VENV BIN STAMP OMP_NUM_THREADS WORKERS SCALE SEEDS OVERRIDES RUNS DRY RUN_GENERATED_CODE PYTEST SLOW
MISSPELT := $(strip $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(filter-out $(VARIABLES),$(name)))))
$(if $(MISSPELT),$(error there is no variable $(MISSPELT). There are: $(VARIABLES)))

.PHONY: help setup demo test test-slow test-all lint format docs dist constraints clean

help: ## List the targets
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv with the tested versions (does nothing when it is up to date)

$(STAMP): pyproject.toml constraints.txt
	@! test -L $(VENV) || { echo "make: $(VENV) is a link to another checkout's, whose package would be replaced: rm $(VENV), and make setup" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"flexlora needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)
	@echo "Ready. Try: $(BIN)/flexlora-run --help"

DEMO := task=glue/cola method=lora,flexlora scale=tiny
demo: $(STAMP) ## Train LoRA and FlexLoRA offline and print their table (a few minutes)
	$(BIN)/flexlora-run -m $(DEMO)
	@echo
	$(BIN)/flexlora-report outputs/tiny
	@echo
	@echo "The record of each run is outputs/tiny/glue/cola/deberta_v3_base/<method>/default/seed0/result.json."
	@echo "Next, the same with your own data and encoder:"
	@echo "  $(BIN)/flexlora-run task=glue/cola method=flexlora model=local model.path=DIR task.data_dir=DIR"

# The paper's tables and figures. Each target runs the missing runs, skips the finished ones, and writes
# outputs/tables/<name>.{md,csv,tex,html} or outputs/figures/<name>.{png,svg}.
#   make table1 SCALE=tiny SEEDS=0,1,2      make table4 DRY=1      make tables OVERRIDES="task.data_dir=DIR"
SCALE ?= paper
SEEDS ?= 0,1,2
OVERRIDES ?=
RUNS ?= outputs
RUN = $(BIN)/flexlora-run -m scale=$(SCALE) output_root=$(RUNS) $(if $(DRY),dry=true) $(OVERRIDES)
SWEEP = $(RUN) 'seed=$(SEEDS)'
# Rows of Table 1 that the ablation tables also have.
BESIDE := experiment=glue+method=full,adalora,flexlora
# Rows that Table 2 has at one rank only, or whose ranks are other settings. They do not include Full FT
# (experiment=commonsense170k_full): the paper cites that row, and the run does not fit on one GPU.
TABLE2 := $(addprefix experiment=commonsense170k_,r12 r32 adalora adalora_r32)
COSTS := table12 table13 table14
E2_TABLES := table_e2_glue table_e2_nlg table_e2_images table_e2_ablation table_e2_budget
TABLES := table1 table2 table3 table4 table5 table6 $(COSTS) table15 table16 $(E2_TABLES)
FIGURES := figure2 figure3

.PHONY: tables figures list ablations $(TABLES) $(FIGURES)
tables: ## Run and write every table, even if one fails (SCALE=tiny SEEDS=0,1,2 OVERRIDES=… DRY=1)
	@$(MAKE) --no-print-directory --keep-going $(TABLES)

figures: ## Run and draw every figure, even if one fails
	@$(MAKE) --no-print-directory --keep-going $(FIGURES)

# The figures use runs of Table 1, so the list of the tables has them.
list: ## Say which runs of the tables and figures are done, failed or missing, and how long the rest takes
	@$(MAKE) --no-print-directory tables DRY=1

# $(call sweeps,<sweeps>): runs sweeps one after another; the others run even if one fails.
sweeps = $(foreach sweep,$(1),$(SWEEP) $(subst +, ,$(sweep)) || code=$$?;)

# $(call table,<name of the table in the report>,<sweeps>): writes the table even if a run fails.
define table
@code=0; $(call sweeps,$(2)) \
  $(if $(DRY),,$(BIN)/flexlora-report $(RUNS) --table $(1) --save $(RUNS)/tables && $(BIN)/flexlora-report $(RUNS) --table $(1) || code=$$?;) exit $$code
endef

table1: $(STAMP) ## Table 1: GLUE
	$(call table,glue,experiment=glue)

table2: $(STAMP) ## Table 2: Commonsense170K
	$(call table,commonsense170k,experiment=commonsense170k $(TABLE2))

table3: $(STAMP) ## Table 3: VTAB-1K
	$(call table,vtab,experiment=vtab)

table4: $(STAMP) ## Table 4: importance metrics, on GLUE
	$(call table,glue_table4,$(BESIDE) experiment=table4)

table5: $(STAMP) ## Table 5: only pruning, only expansion
	$(call table,glue_table5,$(BESIDE) experiment=table5)

table6: $(STAMP) ## Table 6: initialization of new directions
	$(call table,glue_table6,$(BESIDE) experiment=table6)

# $(call cost,<name of the table in the report>,<tasks>,<methods>): each run is a process of its own. Every round runs
# all methods in turn.
comma := ,
define cost
@case '$(SEEDS)' in ''|*[!0-9$(comma)]*) \
  echo "make $@: it starts its runs one by one and needs a list of seeds (SEEDS=0,1,2), not SEEDS='$(SEEDS)'" >&2; exit 2;; esac
@code=0; $(if $(DRY),$(SWEEP) experiment=cost task=$(subst +,$(comma),$(2)) method=$(subst +,$(comma),$(3)) || code=$$?;, \
  for task in $(subst +, ,$(2)); do for seed in $(subst $(comma), ,$(SEEDS)); do for method in $(subst +, ,$(3)); do \
    $(RUN) experiment=cost task=$$task seed=$$seed method=$$method || code=$$?; \
  done; done; done; \
  $(BIN)/flexlora-report $(RUNS) --table $(1) --save $(RUNS)/tables && $(BIN)/flexlora-report $(RUNS) --table $(1) || code=$$?;) exit $$code
endef

table12: $(STAMP) ## Table 12: what training costs, on CoLA and RTE
	$(call cost,cost_table12,glue/cola+glue/rte,lora+adalora+flexlora)

table13: $(STAMP) ## Table 13: what training costs, on Commonsense170K
	$(call cost,cost_table13,commonsense170k,lora+adalora+flexlora+lora_dash)

table14: $(STAMP) ## Table 14: what training costs, on VTAB-1K
	$(call cost,cost_table14,vtab/cifar100+vtab/resisc45+vtab/dmlab,lora+adalora+flexlora)

table15: $(STAMP) ## Table 15: energy in the importance
	$(call table,glue_table15,$(BESIDE) experiment=table15)

table16: $(STAMP) ## Table 16: VTAB-1K in its second setting
	$(call table,vtab_table16,experiment=vtab_table16)

# E²LoRA's tables. HumanEval runs programs that a model wrote, so it is run only if the user says so.
RUN_GENERATED_CODE ?=
HUMANEVAL = experiment=e2_humaneval+task.run_generated_code=true
E2_ABLATIONS := $(sort $(basename $(notdir $(wildcard conf/experiment/e2_ablation_*.yaml))))
# The rows of the ablation and the budget table that the table of language generation also has.
E2_BESIDE := experiment=e2_gsm8k+method=lora,e2lora

table_e2_glue: $(STAMP) ## E²LoRA: GLUE with RoBERTa-base
	$(call table,e2_glue,experiment=e2_glue_full experiment=e2_glue)

table_e2_nlg: $(STAMP) ## E²LoRA: GSM8K with Llama-3.1-8B; RUN_GENERATED_CODE=1 adds HumanEval
	$(if $(RUN_GENERATED_CODE),,@echo "make $@: HumanEval is left out, because it runs programs that a model wrote; RUN_GENERATED_CODE=1 runs it" >&2)
	$(call table,e2_nlg,experiment=e2_gsm8k $(if $(RUN_GENERATED_CODE),$(HUMANEVAL)))

table_e2_images: $(STAMP) ## E²LoRA: seven image sets with CLIP ViT-B/16
	$(call table,e2_images,experiment=e2_images)

table_e2_ablation: $(STAMP) ## E²LoRA: its parts, and ablations of ours, on GSM8K
	$(call table,e2_ablation,$(E2_BESIDE) $(addprefix experiment=,$(E2_ABLATIONS)))

table_e2_budget: $(STAMP) ## E²LoRA: equal budgets, on GSM8K
	$(call table,e2_budget,$(E2_BESIDE) experiment=e2_budget)

# $(call figure,<name of the figure in the report>): draws FlexLoRA on CoLA, from the runs of Table 1.
define figure
@code=0; $(SWEEP) task=glue/cola method=flexlora || code=$$?; \
  $(if $(DRY),,$(BIN)/flexlora-report figures $(RUNS) --only $(1) --task glue/cola --method flexlora --save $(RUNS)/figures || code=$$?;) exit $$code
endef

figure2: $(STAMP) ## Figure 2: ranks over training, on CoLA
	$(call figure,ranks)

figure3: $(STAMP) ## Figure 3: singular values by matrix, on CoLA
	$(call figure,singular_values)

# Our ablations, which the paper does not have: each compares variants of FlexLoRA with its default.
ABLATIONS := $(sort $(basename $(notdir $(wildcard conf/experiment/ablation_*.yaml))))
ABLATED := $(BIN)/flexlora-report $(RUNS) --table glue --method flexlora,flexlora_released --against flexlora

ablations: $(STAMP) ## Our ablations of FlexLoRA, on CoLA
	@code=0; $(call sweeps,$(addprefix experiment=,$(ABLATIONS))) \
	  $(if $(DRY),,mkdir -p $(RUNS)/tables; for ending in md csv tex html; do \
	    $(ABLATED) --output $(RUNS)/tables/ablations.$$ending || code=$$?; done;) exit $$code

# Fuzz tests run 200 examples in `make test` and 2,000 in the slow set (docs/how-to/run-the-tests.md).
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test: $(STAMP) ## Run the tests that gate a change, in at most ten minutes (sets up first)
	$(PYTEST) -m 'not slow'

SLOW ?= slow or fuzz
test-slow: $(STAMP) ## Run the slow tests, which `make test` leaves out, in at most twenty minutes
	FLEXLORA_FUZZ_EXAMPLES=$${FLEXLORA_FUZZ_EXAMPLES:-2000} $(PYTEST) -m '$(SLOW)'

test-all: test test-slow ## Run all tests

lint: $(STAMP) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The variable silences an advertisement of the theme.
docs: $(STAMP) ## Build the documentation site, build/site/index.html, without a network; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean --quiet
	@echo "The site is build/site/index.html."

# Two builds of one commit are equal, byte for byte (tests/docs/test_release.py).
dist: $(STAMP) ## Build the wheel and the sdist into dist/
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build -d dist

constraints: $(STAMP) ## Write the installed versions to constraints.txt, as the tested set
	@{ echo "# The tested set of versions: pip install -c constraints.txt -e '.[dev]'. Made by make constraints."; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel|flexlora)\b|^#|@ ' ; } > constraints.txt

clean: ## Remove caches and build output (keeps .venv and outputs)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
