# The commands of this repository. `make help` lists them; each installs what it needs where it may (root on Debian or Ubuntu).
.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
ROUNDS ?= 3
FUZZ_SECONDS ?= 600
CHAOS_SECONDS ?= 300
# cargo-nextest where it is installed, cargo test otherwise (decision 26).
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

help: ## What there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: ## Build, start Utsuwa, deploy the sample, call it, watch it sleep; the server goes on running
	@scripts/deps.sh run
	$(CARGO) build --release --package utsuwa-daemon
	@scripts/run.sh $(TARGET)/release/utsuwa

check: ## Format, lints, laws and test levels 0–4: many times a day
	@scripts/deps.sh check
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- --deny warnings
	$(CARGO) xtask laws
ifneq ($(NEXTEST),)
	$(CARGO) nextest run --workspace --profile check
else
	$(CARGO) test --workspace --exclude utsuwa-runtime --exclude utsuwa-daemon
	$(CARGO) test --package utsuwa-daemon --bins
	$(CARGO) test --package utsuwa-runtime --lib
endif

test: ## Install what tests need, then run every test
	@scripts/deps.sh test
	@scripts/test-inputs.sh $(TARGET)
	$(CARGO) build --workspace --all-targets
ifneq ($(NEXTEST),)
	@scripts/with-inputs.sh $(TARGET) $(CARGO) nextest run --workspace --profile all
else
	@scripts/with-inputs.sh $(TARGET) $(CARGO) test --workspace --exclude utsuwa-runtime --exclude utsuwa-daemon
	@# These count kernel objects and time: one at a time.
	@scripts/with-inputs.sh $(TARGET) $(CARGO) test --package utsuwa-runtime --package utsuwa-daemon -- --test-threads 1
endif

test-v2: ## Debian's kernel 6.1 with cgroup v2, under qemu: the launcher, the contract, the hostile suite; power cuts and a reboot
	@scripts/deps.sh test-v2
	@tests/v2/run.sh $(TARGET)
	@tests/v2/power.sh $(TARGET)

bench: ## Cold start and the other promises, side by side with what is installed
	@scripts/deps.sh bench
	@scripts/test-inputs.sh $(TARGET)
	$(CARGO) build --release --package utsuwa-daemon --package xtask
	@scripts/with-inputs.sh $(TARGET) $(TARGET)/release/xtask bench --utsuwa $(TARGET)/release/utsuwa

soak: ## What takes longer: fuzzing, walls removed, rounds of kill −9 and the rest of the end-to-end tests, cgroup v2 under qemu
	$(MAKE) soak-fuzz
	$(MAKE) soak-walls
	$(MAKE) soak-chaos
	$(MAKE) soak-rounds
	$(MAKE) test-v2

soak-fuzz: ## Part of soak: FUZZ_SECONDS (600) of fuzzing for each fuzzer
ifneq ($(NEXTEST),)
	UTSUWA_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) nextest run --package utsuwa-ingress --profile soak --ignore-default-filter fuzz
else
	UTSUWA_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --package utsuwa-ingress fuzz
endif

soak-walls: ## Part of soak, a minute besides its build: the walls around instances removed, one set after the other
	@scripts/deps.sh test
	@scripts/test-inputs.sh $(TARGET)
	@scripts/missing-walls.sh $(TARGET)
ifneq ($(NEXTEST),)
	@scripts/with-inputs.sh $(TARGET) $(CARGO) nextest run --package utsuwa-daemon --test e2e --profile soak removed_walls
else
	@scripts/with-inputs.sh $(TARGET) $(CARGO) test --package utsuwa-daemon --test e2e removed_walls
endif

soak-chaos: ## Part of soak: CHAOS_SECONDS (300) of deploys, restarts and kills under load of every protocol
	@scripts/deps.sh test
	@scripts/test-inputs.sh $(TARGET)
ifneq ($(NEXTEST),)
	UTSUWA_TEST_CHAOS_SECONDS=$(CHAOS_SECONDS) scripts/with-inputs.sh $(TARGET) $(CARGO) nextest run --package utsuwa-daemon --test e2e --profile soak chaos
else
	UTSUWA_TEST_CHAOS_SECONDS=$(CHAOS_SECONDS) scripts/with-inputs.sh $(TARGET) $(CARGO) test --package utsuwa-daemon --test e2e chaos -- --test-threads 1
endif

soak-rounds: ## Part of soak: all end-to-end tests, ROUNDS times (3)
	@scripts/deps.sh test
	@scripts/test-inputs.sh $(TARGET)
ifneq ($(NEXTEST),)
	@for round in $$(seq $(ROUNDS)); do echo "round $$round of $(ROUNDS)"; scripts/with-inputs.sh $(TARGET) $(CARGO) nextest run --package utsuwa-daemon --test e2e --profile soak -E 'not test(removed_walls)' || exit 1; done
else
	@for round in $$(seq $(ROUNDS)); do echo "round $$round of $(ROUNDS)"; scripts/with-inputs.sh $(TARGET) $(CARGO) test --package utsuwa-daemon --test e2e -- --test-threads 1 --skip removed_walls || exit 1; done
endif

.PHONY: help run check test test-v2 bench soak soak-fuzz soak-walls soak-chaos soak-rounds
