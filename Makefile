.DEFAULT_GOAL := help
.PHONY: help demo storm storm-short bench bench-quick test test-full services env sqlx check docs build

help: ## Show this list
	@echo "kyc-worker: start with \`make demo\`. Targets:"
	@sed -nE 's/^([a-z-]+):.*## (.*)$$/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 15

demo: ## Watch 2,000 jobs go through, with faults, and every record reconciled
	@scripts/demo.sh

storm: ## Kill replicas, broker and database for ten minutes, and reconcile every record
	@scripts/storm.sh

storm-short: ## The same for a minute
	@scripts/storm.sh --minutes 1 --outage-seconds 20 --squall-seconds 15 --review-percent-max 20

bench: ## Measure the worker against the same without a database: latencies, replicas
	@scripts/bench.sh --latency 0ms,50ms --replicas 1,2,4

bench-quick: ## The same in under a minute; prints their ratio
	@scripts/bench.sh --runs 3

test: ## Run every test: unit, integration over real services, documentation
	@scripts/test.sh

test-full: ## Run the tests of backlogs at their full size: 10,000 jobs, 5 minutes of outage
	@TEST_SIZE=full scripts/test.sh --test it a_backlog -- --nocapture --test-threads=4

services: ## Make PostgreSQL and RabbitMQ answer: found, or started, or installed
	@scripts/services.sh

env: ## Write .env for development: services found or started, a database, fresh keys
	@scripts/env.sh

sqlx: ## Describe the queries anew in .sqlx, after a change to SQL or migrations
	@scripts/sqlx.sh

check: ## Check format, lints, docs, .sqlx and dependencies
	@scripts/check.sh

docs: ## Write settings and schemas into docs/ and .env.example anew
	@UPDATE_DOCS=1 cargo test --locked --quiet --test it documents

build: ## Build the optimized worker and the simulated provider, man pages and completions
	@cargo build --locked --release --bins
	@target/release/kyc-worker man target/release/man
	@mkdir -p target/release/completions
	@for shell in bash zsh fish; do target/release/kyc-worker completions $$shell >target/release/completions/kyc-worker.$$shell; done
