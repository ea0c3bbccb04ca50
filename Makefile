# `make help` lists what there is to do. On a new machine, Rust and make are all that need to be there: every target installs
# what else it needs (tests/support/setup.sh), and does nothing about it when all is there.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# cargo's own tools, and those that Debian keeps from ordinary users' paths.
CARGO_HOME ?= $(HOME)/.cargo
export PATH := $(CARGO_HOME)/bin:$(PATH):/usr/sbin:/sbin

PREFIX ?= /usr/local
# mount(8) looks for helpers in /sbin alone, which is /usr/sbin wherever the two are one.
SBINDIR ?= $(if $(shell test -L /sbin && echo merged),/usr/sbin,/sbin)
DESTDIR ?=
FUZZ_SECONDS ?= 30

setup := tests/support/setup.sh
scripts = .ci/run $(shell find tests -name target -prune -o -name '*.sh' -print)

.PHONY: help setup build test lint fmt-check clippy doc deny shellcheck bench demo fuzz install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what `make test` needs, if it is not there
	@$(setup) test

build: ## build the release binaries
	@$(setup) build
	cargo build --release --locked --workspace

test: setup lint ## everything that CI checks: lints, then every test
	cargo build --locked --workspace
	cargo test --locked --workspace --doc --quiet
	@skipped=$$(mktemp); trap 'rm -f "$$skipped"' EXIT; export ANNALS_SKIPPED=$$skipped; \
	cargo nextest run --locked --workspace --no-fail-fast; \
	if [ -s "$$skipped" ]; then printf '\nNot all tests could run here:\n'; sort -u "$$skipped"; fi

lint: setup fmt-check clippy doc deny shellcheck ## formatting, clippy, links in the documentation, licences and advisories, scripts

fmt-check:
	cargo fmt --all --check

clippy:
	cargo clippy --locked --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --locked --workspace --no-deps --document-private-items --quiet

deny:
	tests/support/deny.sh

shellcheck:
	shellcheck $(scripts)

bench: ## compare with QEMU, nbdcopy, ratarmount, squashfuse and native files; keeps the table in docs/ (PARTS='disk many backup tree')
	@$(setup) bench
	cargo build --release --locked --workspace
	tests/bench/run.sh $(PARTS)

demo: ## back up a live disk and a container, mount the store, get a file back, clean up
	@$(setup) demo
	cargo build --release --locked --workspace
	tests/demo.sh

fuzz: ## run each fuzz target for FUZZ_SECONDS (30)
	@$(setup) fuzz
	tests/fuzz/run.sh $(FUZZ_SECONDS)

install: ## install what `make build` built: annals, mount.annals, manual pages, completions (DESTDIR, PREFIX)
	tests/support/install.sh '$(DESTDIR)' '$(PREFIX)' '$(SBINDIR)'

clean: ## remove what was built
	cargo clean
	rm -rf tests/fuzz/target
