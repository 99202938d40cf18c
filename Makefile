# The one door for people, CI and pre-commit. `make help` lists the targets.
#
# TORCH_INDEX  package index for PyTorch alone: the CPU index that PyTorch's install page gives, where the default would bring CUDA
# PYTHON       the interpreter that makes .venv (3.11 or later)

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
FUZZ_SECONDS ?= 300

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INPUTS := pyproject.toml constraints.txt
# Memory freed by one step serves the next instead of going back to the kernel: read by the C library before Python starts.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup check test test-all chaos fuzz demo bench bench-peer bench-plan bench-weights bench-staleness bench-scaling bench-standin test-gpu bench-gpu soak example-models docs
.PHONY: constraints

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(VENV)/.dev-stamp ## virtual environment with everything, pinned by constraints.txt

check: setup ## ruff, mypy --strict, import contracts, length caps
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit/test_style.py

test: setup ## all tests but the slow ones
	$(BIN)/pytest -q -m "not slow" $(ARGS)

test-all: setup ## all tests, the slow parity and fault suites included
	$(BIN)/pytest -q $(ARGS)

test-gpu: setup ## on a machine with CUDA: learner, teacher and engine compute what they compute on a CPU
	$(BIN)/pytest -q tests/gpu $(ARGS)

chaos: setup ## 500 faults on the arithmetic run: nothing lost, nothing applied twice (45 minutes; ARGS=--help)
	$(BIN)/python tests/chaos $(ARGS)

fuzz: $(VENV)/.fuzz-stamp ## hostile bytes for every decoder, 5 CPU-minutes each (FUZZ_SECONDS=300); what is found stays a test
	@failed=0; for decoder in codec manifest journal config prompts delta; do \
	  $(BIN)/python tests/fuzz/fuzz.py $$decoder $(FUZZ_SECONDS) $(ARGS) || failed=1; done; exit $$failed

demo: $(VENV)/.run-stamp ## train the arithmetic example: `reflux run examples/arithmetic/run.toml`
	$(BIN)/reflux run examples/arithmetic/run.toml $(ARGS)

bench: setup ## tokens per CPU-second of each stage, overheads, publish latency
	$(BIN)/python -m benchmarks.stages $(ARGS)

bench-peer: setup ## Reflux beside TRL's DistillationTrainer, same models, prompts and samples
	$(BIN)/python -m benchmarks.peer $(ARGS)

bench-plan: setup ## what `reflux plan` says beside real runs (ten minutes; docs/plan.md)
	$(BIN)/python -m benchmarks.plan $(ARGS)

bench-weights: setup ## weight versions in full against deltas: bytes and times, synthetic and on a real run
	$(BIN)/python -m benchmarks.weights $(ARGS)

bench-standin: setup ## the whole example through stand-in SGLang servers beside the torch run: pass@1 and seconds (docs/engines.md)
	$(BIN)/python -m benchmarks.standin $(ARGS)

bench-gpu: setup ## on a machine with CUDA: tokens/s, MFU and peak memory of the three stages with random Qwen3 models of 1.7 and 4 B
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-staleness: setup ## pass@1 at forced lags, two losses, three seeds
	$(BIN)/python -m benchmarks.staleness $(ARGS)

bench-scaling: setup ## 1 to 16 scorers join and leave under a fixed load: throughput against ideal
	$(BIN)/python -m benchmarks.scaling $(ARGS)

soak: setup ## MINUTES=30 at the highest rate: is every role's memory flat, the server's within bounds?
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30) $(ARGS)

example-models: setup ## train the example's teacher and student from scratch
	$(BIN)/python examples/arithmetic/train_models.py $(ARGS)

docs: setup ## docs/configuration.md and docs/metrics.md from what the code declares
	$(BIN)/python -m deploy.docs docs/configuration.md
	$(BIN)/python -m deploy.metrics_page docs/metrics.md

constraints: setup ## constraints.txt from what is installed now
	$(BIN)/python -m pip freeze --exclude-editable | grep -v ' @ ' | sed 's/+cpu$$//' > constraints.txt

$(VENV)/.interpreter:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Reflux needs Python 3.11 or later: name one, e.g. make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) -m venv failed: install the venv module of your Python (Debian: python3-venv)"; exit 1; }
	@touch $@

$(VENV)/.torch-stamp: $(VENV)/.interpreter
	@echo "setting up $(VENV): PyTorch$(if $(TORCH_INDEX), from $(TORCH_INDEX))"
	@$(PIP) install --no-deps "$$(grep '^torch==' constraints.txt)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

$(VENV)/.run-stamp: $(INPUTS) | $(VENV)/.torch-stamp
	@echo "setting up $(VENV): what a run needs"
	@$(PIP) install -e . -c constraints.txt
	@touch $@

$(VENV)/.fuzz-stamp: $(VENV)/.dev-stamp
	@$(PIP) install -e '.[fuzz]' -c constraints.txt || echo "no atheris for this Python: the inputs are mutated without its guidance"
	@touch $@

$(VENV)/.dev-stamp: $(INPUTS) | $(VENV)/.torch-stamp
	@echo "setting up $(VENV): what a run, the tests and the checks need"
	@$(PIP) install -e '.[dev]' -c constraints.txt
	@touch $(VENV)/.run-stamp $@
