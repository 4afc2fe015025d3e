# Every target is what CI runs too; anything longer than three lines lives in .ci/.
.PHONY: run build check test fuzz lint fmt proto bench bench-instructions bench-plugins clean

run: ## installs what is missing, builds, starts the gateway on its embedded default
	.ci/setup build
	cargo build --release --locked
	exec target/release/portcullis run -c conf/config.yaml

build:
	.ci/setup build
	cargo build --release --locked

check:
	cargo check --all-targets --locked

test: ## installs what the tests need, then runs all of them
	.ci/setup test
	cargo test --locked --no-fail-fast
	CARGO_TARGET_DIR=$${CARGO_TARGET_DIR:-target} cargo test --locked --manifest-path tests/fuzz/Cargo.toml
	.ci/runners test

fuzz: ## all fuzz targets with a sanitizer, a minute each; see tests/fuzz/README.md
	.ci/setup build
	.ci/fuzz

lint: ## format, clippy, licences, advisories
	.ci/setup lint
	.ci/lint

fmt:
	rustfmt $$(git ls-files '*.rs')

proto: ## src/ext_plugin/proto.rs of its schema
	.ci/setup lint
	.ci/proto

bench: ## needs wrk, nginx and haproxy; a quarter of an hour, and what it builds
	.ci/setup bench
	python3 bench/run.py

bench-instructions: ## instructions of a request in user mode, which no busy machine blurs; needs valgrind and nginx
	.ci/setup bench
	python3 bench/instructions.py

bench-plugins: ## the gateway with external plugins in each language; needs wrk and nginx
	.ci/setup bench
	cargo build --release --locked --bin portcullis --example stub_runner
	.ci/runners build
	python3 bench/ext_plugin/proxied.py

clean:
	cargo clean
