.DEFAULT_GOAL := help
.PHONY: help demo storm storm-cluster storm-short bench bench-quick bench-full bench-docs test test-stress test-full test-servers services env sqlx check docs screenshots build

help: ## Show this list
	@echo "kyc-worker: start with \`make demo\`. Targets:"
	@sed -nE 's/^([a-z-]+):.*## (.*)$$/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 15

demo: ## Watch 2,000 jobs go through, with faults, and every record reconciled
	@scripts/demo.sh

storm: ## Kill replicas, broker and database for ten minutes, and reconcile every record
	@scripts/storm.sh

storm-cluster: ## The same, with a broker of three nodes that are killed, frozen and cut off
	@scripts/storm.sh --cluster

storm-short: ## The same for a minute
	@scripts/storm.sh --minutes 1 --outage-seconds 20 --squall-seconds 15 --review-percent-max 20

bench: ## Measure the worker: against the same without a database, latencies, replicas, retries, idle, one job alone
	@scripts/bench.sh

bench-quick: ## Its throughput alone, in under a minute; ends with its ratio
	@scripts/bench.sh --only throughput --runs 3

bench-full: ## All of it, with peers, a run of a million jobs and rows by the million, the console beside them; 45 minutes, 20 GB of disk
	@scripts/bench.sh --only throughput,latency,replicas,retries,idle,single,peers,memory,rows,console,events

bench-docs: ## The same, and write the figures into docs/
	@scripts/bench.sh --only throughput,latency,replicas,retries,idle,single,peers,memory,rows,console,events --write-docs

test: ## Run every test: unit, integration over real services, documentation
	@scripts/test.sh

test-stress: ## Run every test five times in a row (RUNS), each beside two busy loops
	@scripts/test-stress.sh $(RUNS)

test-full: ## Run the tests of backlogs at their full size: 10,000 jobs, 5 minutes of outage
	@TEST_SIZE=full scripts/test.sh --test it a_backlog -- --nocapture --test-threads=4

test-servers: ## Run every test on RabbitMQ 4.0 and PostgreSQL 17, or another (POSTGRES=14), in a root of their own
	@scripts/test-servers.sh $(if $(POSTGRES),--postgres $(POSTGRES))

services: ## Make PostgreSQL and RabbitMQ answer: found, or started, or installed
	@scripts/services.sh

env: ## Write .env for development: services found or started, a database, fresh keys
	@scripts/env.sh

sqlx: ## Describe the queries anew in .sqlx, after a change to SQL or migrations
	@scripts/sqlx.sh

check: ## Check format, lints, docs, .sqlx and dependencies
	@scripts/check.sh

docs: ## Write settings, schemas, figures, dashboards and Kubernetes' rules anew
	@UPDATE_DOCS=1 cargo test --locked --quiet --test it documents
	@UPDATE_DOCS=1 cargo test --locked --quiet --package kyc-lab --bin bench documents

screenshots: ## Take the documents' picture of the console anew, in a real browser
	@UPDATE_DOCS=1 scripts/test.sh --test it console_browser

build: ## Build the optimized worker and the simulated provider, man pages and completions
	@cargo build --locked --release --workspace --bins
	@target/release/kyc-worker man target/release/man
	@mkdir -p target/release/completions
	@for shell in bash zsh fish; do target/release/kyc-worker completions $$shell >target/release/completions/kyc-worker.$$shell; done
