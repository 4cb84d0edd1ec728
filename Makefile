# Everything a contributor does; `make help` lists it. The set-up itself is patches/install.py.
# Another interpreter, for the first set-up or after `make clean`: make setup PYTHON=python3.12
PYTHON ?= python3
PY := .venv/bin/python
BOOT := $(or $(wildcard $(PY)),$(PYTHON))
RUFF := $(PY) -m ruff
LINTED := setup.py vllm_batchllm patches tests benchmarks
MODEL := models/SmolLM2-135M-Instruct
PYTEST_ARGS ?=
BENCH_ARGS ?=
CONFORMANCE_ARGS ?=
ABUSE_ARGS ?=
SOAK_ARGS ?=
# --keep goes on with what an interrupted run has finished.
PAPER_ARGS ?=
MEASURED_ROUNDS ?= 3
# Workloads on which the simulator is held against this machine.
MEASURED ?= micro-2000-200-d16 industry tree-3 decode-heavy mixed
# Unit tests hardly touch vLLM: they need no second run.
NEXT_PURE := tests/ledger tests/scheduler tests/unit/test_shared_attention_choice.py tests/unit/test_replica_llm.py
NEXT_TESTS := tests/upstream tests/engine/test_llm.py tests/engine/test_front_ends.py \
	tests/attention/test_sharing.py tests/jobs/test_handlers.py tests/jobs/test_command.py
# Steps of `make fuzz`, and where its random numbers start; a run tells its seed, to be replayed.
FUZZ_STEPS ?= 100000
FUZZ_SEED ?=

.DEFAULT_GOAL := help
.PHONY: help setup model demo test test-long test-fast fuzz next test-next drift conformance lint format dist bench abuse soak paper paper-full clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

setup: ## create .venv with everything pinned (once; about 3 minutes, 4 GB)
	@command -v $(BOOT) >/dev/null || { echo \
	  "set-up stopped: $(BOOT) was not found. Install Python 3.11 or newer, or name it:" \
	  "make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BOOT) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 7) else \
	  "set-up stopped: Python 3.11 or newer is needed, but $(BOOT) is %d.%d.%d" % v[:3])'
	@$(BOOT) patches/install.py

model: setup ## fetch and convert SmolLM2-135M-Instruct into models/ (once; about 40 s, 0.6 GB)
	@$(PY) benchmarks/demo/fetch_model.py --dest $(MODEL)

demo: model ## documents x questions on a real model, with an A/B against stock vLLM
	$(PY) benchmarks/demo/main_job.py

# A core each: no engine runs here, and a file stays in one process. What has engines runs by itself.
PURE_TESTS := tests/unit tests/ledger tests/scheduler
BY_CORE := -n 2 --dist loadfile

test: model ## all tests, real engines included
	$(PY) -m pytest $(BY_CORE) $(PURE_TESTS) $(PYTEST_ARGS)
	$(PY) -m pytest $(PURE_TESTS:%=--ignore=%) $(PYTEST_ARGS)

test-long: model ## what takes too long for every change: whole grids, real servers in full
	$(PY) -m pytest -m long $(PYTEST_ARGS)

test-fast: setup ## tests without a model: tests/unit, tests/ledger and tests/scheduler
	$(PY) -m pytest tests/unit tests/ledger tests/scheduler $(PYTEST_ARGS)

fuzz: setup ## 100,000 random steps of schedulers, random inputs of all parsers (FUZZ_SEED=n replays)
	@seed="$(FUZZ_SEED)"; export FUZZ_SEED="$${seed:-$$($(PY) -c 'import secrets; print(secrets.randbelow(10**6))')}"; \
	FUZZ_STEPS=$(FUZZ_STEPS) $(PY) -m pytest --timeout=3600 --hypothesis-profile=fuzz --hypothesis-seed=$$FUZZ_SEED \
	  tests/scheduler/test_scheduler_machine.py tests/unit/test_fuzz_parsers.py $(PYTEST_ARGS)

next: setup ## .next: the next vLLM's Python on the kernels of this one (seconds, 47 MB once)
	@$(PY) patches/next_overlay/make_overlay.py

ON_NEXT := PYTHONPATH="$(CURDIR)/.next$${PYTHONPATH:+:$$PYTHONPATH}"

test-next: model next ## on the next vLLM: ledger, scheduler ring, its own core tests, LLM and front ends
	$(ON_NEXT) $(PY) -m pytest --on-next $(BY_CORE) $(NEXT_PURE) $(PYTEST_ARGS)
	$(ON_NEXT) $(PY) -m pytest --on-next $(NEXT_TESTS) $(PYTEST_ARGS)

drift: setup ## which bodies of vLLM that we rely on have changed: make drift OLD=0.32.0 NEW=0.33.0
	@$(PY) tests/ledger/drift.py $(OLD) $(NEW)

conformance: setup ## vLLM's own tests with its classes and with ours, compared (long)
	$(PY) tests/upstream/conformance.py $(CONFORMANCE_ARGS)

lint: setup ## ruff (check and format), mypy, and the rooms (no arrow goes up)
	$(RUFF) check $(LINTED)
	$(RUFF) format --check $(LINTED)
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo --no-cache

format: setup ## let ruff format and mend what it can
	$(RUFF) check --fix $(LINTED)
	$(RUFF) format $(LINTED)

dist: setup ## sdist and wheel into dist/, checked and tried out; nothing is uploaded
	@$(PY) patches/make_dist.py

bench: setup ## A/B of stock, sorted and batchllm (options: BENCH_ARGS="...")
	.venv/bin/vllm-batchllm bench $(BENCH_ARGS)

abuse: model ## a real server under abuse, full size (about 5 minutes; options: ABUSE_ARGS="...")
	$(PY) benchmarks/live/abuse.py $(ABUSE_ARGS)

soak: model ## 10 minutes of mixed load on a real server; curve in results/soak (SOAK_ARGS="...")
	$(PY) benchmarks/live/soak.py $(SOAK_ARGS)

PAPER := benchmarks/results/paper
paper: setup ## tables of docs/policies.md and docs/benchmarks.md anew: simulated, and this machine
	$(PY) benchmarks/paper/check.py --out $(PAPER)
	$(PY) benchmarks/paper/validate.py --out $(PAPER) $(PAPER_ARGS)
	$(PY) benchmarks/paper/policies_at_scale.py --out $(PAPER) $(PAPER_ARGS)
	.venv/bin/vllm-batchllm calibrate
	.venv/bin/vllm-batchllm bench $(MEASURED) --rounds $(MEASURED_ROUNDS) \
		--out $(PAPER)/measured --report $(PAPER)/measured
	$(PY) benchmarks/paper/cpu.py $(PAPER)/measured/bench.json --out $(PAPER)
	$(PY) benchmarks/scale.py --out $(PAPER)/scale --quick

paper-full: setup ## policies with the paper's 6,400 requests, simulated (about 20 minutes)
	$(PY) benchmarks/paper/full_size.py --out $(PAPER)

clean: ## remove .venv, caches and build files; models/ and results/ stay
	rm -rf .venv .next .release build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
