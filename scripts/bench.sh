#!/usr/bin/env bash
# Measures the worker on this machine: against the same without a database, against peers, with
# latency, replicas, retries, and rows by the million. What is given is passed on:
#
#   scripts/bench.sh --only latency --latency 50ms --runs 3
#   scripts/bench.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
scripts/services.sh demo
# shellcheck source=/dev/null
source target/services.env

build_programs release kyc-worker dollarpe-sandbox ceiling naive bench

if [[ " $* " == *peers* ]]; then
    if ! { command -v node && command -v npm; } >/dev/null; then
        fail "part peers needs Node.js 20 or later with npm (Debian: apt-get install npm), or leave it out with --only"
    fi
    peer=target/bench/node
    mkdir -p "$peer"
    cp crates/lab/peers/node/package.json crates/lab/peers/node/package-lock.json crates/lab/peers/node/worker.mjs "$peer/"
    npm ci --silent --no-audit --no-fund --prefix "$peer" ||
        fail "npm cannot install the libraries of crates/lab/peers/node"
fi
exec "$programs/bench" "$@"
