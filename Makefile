# The two commands of the README, and what CI runs beside them.

PYTHON ?= python3

.PHONY: binary run models test faults test-rust test-clients test-deploy lint docs bench cuda test-cuda lint-cuda kernel-resources fuzz interleavings supply-chain sbom

# Fetch the models, build, and serve them.
run: models
	cargo run --release -- serve --models models

models:
	$(PYTHON) models/fetch.py

# Everything that can be tested here: Rust, and other people's clients against the built server.
test: models test-rust test-clients test-deploy

test-rust:
	cargo test

# The suite of faults (docs/faults.md) over and over, then the tests elsewhere that its table names.
FAULTS_ROUNDS ?= 10

faults:
	cargo test --test faults --test it --test hostile_inputs --lib --no-run
	for round in $$(seq $(FAULTS_ROUNDS)); do \
	    echo "round $$round of $(FAULTS_ROUNDS)" && cargo test --test faults || exit 1; \
	done
	cargo test --lib -- watchdog:: clock_tests:: request_log:: repository::memory::
	cargo test --test it -- drain:: deadlines:: engine:: engine_generation:: device:: jobs:: generate:: \
	    response_cache_rows:: versions:: repository:: batching_properties:: warm::processes
	FERRY_HOSTILE_SEED=$$(date +%s) cargo test --test hostile_inputs

# The binary comes with the tests; building it alone would build its dependencies once more, without
# what the tests want of them.
test-clients: binary
	$(PYTHON) tests/clients/run.py --ferry target/debug/ferry --models models

# Dockerfiles and manifests, as far as that goes without an engine and a cluster.
test-deploy: binary
	$(PYTHON) deploy/check.py --ferry target/debug/ferry

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# The figures of docs/performance.md.
bench:
	cargo run --release -- bench --clients 1,8,32

binary:
	cargo test --no-run

# The build for NVIDIA GPUs; needs neither one nor its driver. What compiles CUDA comes from PyPI into
# target/cuda-toolkit. CUDA_COMPUTE_CAP says what candle's kernels are compiled for (docs/cuda.md).
WITH_TOOLKIT = toolkit=$$(PYTHON=$(PYTHON) scripts/cuda-toolkit.sh) && eval "$$toolkit" &&

cuda:
	@$(WITH_TOOLKIT) cargo build --release --features cuda

# The crate is compiled quickly, not for speed: what is tested is that it builds, links, starts without
# a driver, what its kernels take, and that models run through a mock driver. Where there is a GPU: scripts/gpu-check.sh.
test-cuda:
	@$(WITH_TOOLKIT) export CARGO_PROFILE_DEV_OPT_LEVEL=0 && \
	cargo test --features cuda --test it -- device:: kernel_resources:: && \
	cargo test --features cuda --test cuda_mock

lint-cuda:
	@$(WITH_TOOLKIT) CARGO_PROFILE_DEV_OPT_LEVEL=0 cargo clippy --all-targets --features cuda -- -D warnings

# Takes over what ptxas says of the kernels; look at the difference before you commit it.
kernel-resources:
	@$(WITH_TOOLKIT) CARGO_PROFILE_DEV_OPT_LEVEL=0 FERRY_UPDATE_KERNEL_RESOURCES=1 cargo test --features cuda --test it -- kernel_resources::no_kernel
	git diff --stat kernels/resources.toml

# Every fuzz target for so many seconds; FUZZ="stop_text texts" for some. Needs nightly Rust and
# cargo-fuzz, and once some twenty minutes of compiling (docs/fuzzing.md).
SECONDS ?= 60

fuzz:
	scripts/fuzz.sh $(SECONDS) $(FUZZ)

# Fifty times the schedules that `cargo test` tries.
interleavings:
	FERRY_SCHEDULES=100000 cargo test --test interleavings

# Licences, sources and versions of all dependencies; with `cargo deny check` also known vulnerabilities,
# which asks the network.
supply-chain:
	cargo deny --all-features check licenses bans sources
	cargo deny --all-features list

# What the binary is made of, as CycloneDX: target/ferry.cdx.json.
sbom:
	scripts/sbom.sh
