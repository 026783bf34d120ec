# One door to everything. `make verify` writes nothing but target/; `make fix` may change the sources.

SHELL := bash
# .ci/run sets it to `time`.
TIMED ?=

# How long `make fuzz` stays with each target.
SECONDS ?= 60

.PHONY: verify sim power bugs crash fix audit fuzz

# The library also as those who depend on it have it: without what its tests ask of its dependencies, and as a remote client
# alone.
verify:
	$(TIMED) cargo fmt --all --check
	$(TIMED) cargo clippy --locked --all-targets -- -D warnings
	$(TIMED) cargo clippy --locked --features sim --all-targets -- -D warnings
	$(TIMED) cargo clippy --locked --lib --no-default-features -- -D warnings
	$(TIMED) cargo clippy --locked --lib -- -D warnings
	$(TIMED) cargo clippy --locked -p quorate-bench -p quorate-example-balance --all-targets -- -D warnings
	$(TIMED) cargo test --locked
	$(TIMED) cargo test --locked --no-default-features --lib
	$(TIMED) cargo test --locked -p quorate-bench
	for example in quickstart leader_election distributed_lock config_reload remote_client service_discovery \
			transactions typed_map; do \
		cargo run --locked --quiet --example $$example > target/$$example.log || exit 1; \
	done
	cargo run --locked --quiet -p quorate-example-balance > target/balance.log
	$(TIMED) env RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps
	$(TIMED) env RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items

# Whole groups in one thread, under faults: SEEDS of them, or again the one that is SEED, saying what happens.
SEEDS ?= 200
FROM ?= 0
sim:
	$(if $(SEED),TRACE=1 SEED=$(SEED),SEEDS=$(SEEDS) FROM=$(FROM)) \
		cargo test --locked --profile sim --features sim --test sim -- --nocapture $(if $(SEED),seeds)

# The power goes on all members of a group at once, at so many moments of so many recordings of real members.
IMAGES ?= 5000
power:
	IMAGES=$(IMAGES) \
		cargo test --locked --profile sim --features sim --test sim -- --nocapture --exact power

# Real processes that are killed and stopped under load, so often, then for so many seconds under clients from outside, and
# at every named point of the code.
KILLS ?= 300
PAUSES ?= 50
OUTSIDE ?= 600
crash:
	KILLS=$(KILLS) PAUSES=$(PAUSES) OUTSIDE=$(OUTSIDE) \
		cargo test --locked --features sim --test it crash -- --nocapture --test-threads 1

fix:
	cargo fmt --all
	cargo clippy --fix --allow-dirty --allow-staged --all-targets

# Needs cargo-deny. `cargo deny check advisories` is apart, because it needs a database from the network.
audit:
	cargo deny check bans licenses sources

# Puts known bugs back, one at a time, and has them found within so many seeds.
BUG_SEEDS ?= 400
bugs:
	BUG_SEEDS=$(BUG_SEEDS) $(if $(BUG),BUG=$(BUG)) \
		cargo test --locked --profile sim --features sim --test sim -- --nocapture bugs_are_found

# Needs a nightly compiler and cargo-fuzz; see fuzz/README.md. Goes on after a finding, and fails in the end.
fuzz:
	cd fuzz && cargo +nightly fuzz build
	cd fuzz && failed=; for target in $$(cargo +nightly fuzz list); do \
		mkdir -p corpus/$$target; \
		cargo +nightly fuzz run $$target corpus/$$target ../tests/corpus/$$target -- \
			-max_total_time=$(SECONDS) -timeout=30 -print_final_stats=1 || failed="$$failed $$target"; \
	done; test -z "$$failed" || { echo "findings in:$$failed"; exit 1; }
