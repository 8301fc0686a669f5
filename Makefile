# Every target makes .venv when there is none. Variables:
#   PYTHON           the interpreter to make .venv with (python3)
#   TORCH_INDEX_URL  an index to take torch from, such as PyTorch's CPU index
#   CONSTRAINTS      the tested set of versions (constraints.txt); empty for none
#   SHARE_DIST_NO_NODE=1  go without the JavaScript client's test, where there is no Node.js
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
CONSTRAIN := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
PB := share_dist/pb
RESULTS := tests/benchmarks/results
JAVASCRIPT := tests/interop/javascript
NODE_MODULES := $(JAVASCRIPT)/node_modules/.package-lock.json
# Small matrices are slower on two contended threads than on one.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint system bench bench-gpu soak chaos protos clean system-packages

help:
	@echo 'make quickstart  learn eight real tasks on two workers into one subspace, and report'
	@echo 'make test        all tests'
	@echo 'make lint        formatting, lint, types, import directions, generated code, wheel'
	@echo 'make system      real processes, killed in the middle of their work'
	@echo 'make bench       ratios against named baselines; bench-gpu the same on a GPU'
	@echo 'make soak        workers, kills and hostile bytes for minutes (SECONDS=600, INPUTS=1000000)'
	@echo 'make chaos       actors, nodes and the coordinator killed for minutes (SECONDS=600)'
	@echo 'make protos      generate $(PB) from protos/'
	@echo 'make clean       remove .venv, runs/ and caches'

# pip takes torch first, because it reads the find-links of its own configuration; uv the rest, because it is quick.
$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH_INDEX) $(CONSTRAIN) torch
	$(BIN)/pip install --quiet $(CONSTRAIN) uv

$(VENV)/.quickstart: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(CONSTRAIN) -e '.[quickstart]'
	@touch $@

$(VENV)/.dev: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(CONSTRAIN) -e '.[dev]'
	@touch $@

# Beside the tests, not among them: the other programs that the merge is measured against.
$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(CONSTRAIN) -e '.[bench]'
	@touch $@

# Where there is no npm nothing is done: the test that needs it fails, and says what to do.
$(NODE_MODULES): $(JAVASCRIPT)/package.json $(JAVASCRIPT)/package-lock.json
	@if [ "$(SHARE_DIST_NO_NODE)" != 1 ] && command -v npm >/dev/null; then cd $(JAVASCRIPT) && npm ci --loglevel=error && touch ../../../$@; fi

# A server for the tests of stores in PostgreSQL, a browser for those of the operator's page, and what machines
# inside this one are made of, for those of a cluster.
system-packages:
	@[ "$(SHARE_DIST_NO_POSTGRES)" = 1 ] || .ci/install-system-packages postgresql
	@[ "$(SHARE_DIST_NO_BROWSER)" = 1 ] || .ci/install-system-packages chromium
	@.ci/install-system-packages iproute2 openssh-client openssh-server rsync

quickstart: $(VENV)/.quickstart
	$(BIN)/share-dist quickstart $(ARGS)

# A file's tests stay together: what they share is made once.
WORKERS ?= 2
test: $(VENV)/.dev $(NODE_MODULES) system-packages
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not system and not packaging" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m packaging

system: $(VENV)/.dev system-packages
	$(BIN)/python -m pytest -m system --timeout 1800 $(ARGS)

# Where the benchmarks keep the adapters that they train, half a minute each.
ADAPTERS ?= runs/adapters
bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks.merge_time --output $(RESULTS)/merge_time.json $(ARGS)
	$(BIN)/python -m tests.benchmarks.wire_speed --output $(RESULTS)/wire_speed.json
	$(BIN)/python -m tests.benchmarks.durability --output $(RESULTS)/durability.json
	$(BIN)/python -m tests.benchmarks.fanout --output $(RESULTS)/fanout.json
	$(BIN)/python -m tests.benchmarks.resident --output $(RESULTS)/resident.json

	$(BIN)/python -m tests.benchmarks.peer_time --output $(RESULTS)/peer_time.json
	$(BIN)/python -m tests.benchmarks.peer_time --mistral-layers 1 --tasks 16 --rank 16 --num-factors 64 --rounds 1 --output $(RESULTS)/peer_time_mistral.json
	$(BIN)/python -m tests.benchmarks.real_adapters $(ADAPTERS) --seeds 3
	$(BIN)/python -m tests.benchmarks.peer_quality --adapters $(ADAPTERS)/seed-0 --output $(RESULTS)/peer_quality.json
	$(BIN)/python -m tests.benchmarks.init_from_many --output $(RESULTS)/init_from_many.json
	$(BIN)/python -m tests.benchmarks.training_step --output $(RESULTS)/training_step.json
	$(BIN)/python -m tests.benchmarks.memory --output $(RESULTS)/memory.json
	$(BIN)/python -m tests.benchmarks.actor_overhead --output $(RESULTS)/actor_overhead.json
	$(BIN)/python -m tests.benchmarks.no_barrier --output $(RESULTS)/no_barrier.json
	$(BIN)/python -m tests.benchmarks.streaming_quality --output $(RESULTS)/streaming_quality.json
	$(BIN)/python -m tests.benchmarks.merge_quality $(ADAPTERS) --output $(RESULTS)/merge_quality.json
	$(BIN)/python -m tests.benchmarks.byte_budget $(ADAPTERS) --output $(RESULTS)/byte_budget.json
	$(BIN)/python -m tests.benchmarks.compression --adapters $(ADAPTERS) --output $(RESULTS)/compression.json
	$(BIN)/python -m tests.benchmarks.simulate --adapters $(ADAPTERS) --output $(RESULTS)/simulate.json
	$(BIN)/python -m tests.benchmarks.readme_tables

# The first says so, and fails, where there is no CUDA device.
bench-gpu: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks.training_step --device cuda --model mistral --dtypes bfloat16 --output $(RESULTS)/training_step_gpu.json
	$(BIN)/python -m tests.benchmarks.merge_time --device cuda --output $(RESULTS)/merge_time_gpu.json $(ARGS)
	$(BIN)/share-dist kit fetch
	$(BIN)/python -m tests.benchmarks.gpu_actors --output $(RESULTS)/gpu_actors.json
	$(BIN)/python -m tests.benchmarks.readme_tables

# Without atheris, which has no wheel for some interpreters, inputs are changed by chance alone.
SECONDS ?= 600
INPUTS ?= 1000000
soak: $(VENV)/.dev
	-$(BIN)/uv pip install --quiet --python $(BIN)/python $(CONSTRAIN) --only-binary atheris -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) --output $(RESULTS)/fuzz.json
	$(BIN)/python -m tests.soak --seconds $(SECONDS) --output $(RESULTS)/soak.json

chaos: $(VENV)/.quickstart $(VENV)/.dev
	$(BIN)/share-dist kit fetch
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) --output $(RESULTS)/chaos.json

protos: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc --proto_path=protos --python_out=. --pyi_out=. --grpc_python_out=. protos/$(PB)/*.proto

clean:
	rm -rf $(VENV) $(JAVASCRIPT)/node_modules runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
