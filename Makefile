# The two commands of the README, and what CI runs beside them.

PYTHON ?= python3

.PHONY: binary run models test test-rust test-clients test-deploy lint docs bench

# Fetch the models, build, and serve them.
run: models
	cargo run --release -- serve --models models

models:
	$(PYTHON) models/fetch.py

# Everything that can be tested here: Rust, and other people's clients against the built server.
test: models test-rust test-clients test-deploy

test-rust:
	cargo test

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
