#!/usr/bin/env bash
# Runs every test: unit, integration (over real services, with points to crash at), documentation.
# What is given is passed on to cargo test: scripts/test.sh --test it broker
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
scripts/services.sh test
scripts/publishers.sh
# shellcheck source=/dev/null
source target/services.env

run=(cargo test --locked --workspace --features failpoints)
if [[ $# -gt 0 ]]; then
    exec "${run[@]}" "$@"
fi

# Tests mostly wait, so several share a core. More would starve each other (leases and reads have real
# deadlines), and PostgreSQL has a hundred connections.
threads=$(($(nproc) * 5 / 2))
"${run[@]}" --no-fail-fast -- --test-threads=$((threads > 8 ? 8 : threads))
