#!/usr/bin/env bash
# Measures the worker on this machine: against the same without a database, against peers, with
# latency, replicas, retries, and rows by the million. What is given is passed on:
#
#   scripts/bench.sh --only latency --latency 50ms --runs 3
#   scripts/bench.sh --help
#
# BENCH_PROFILE=quick uses the demo's build, without linking across crates.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
scripts/services.sh demo
# shellcheck source=/dev/null
source target/services.env

profile=${BENCH_PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}
if [[ ! -x $target/$profile/examples/bench ]]; then
    say "Building (the first time, a few minutes) ..."
fi
cargo build --locked --quiet --profile "$profile" --bins --example bench --example ceiling --example naive

if [[ " $* " == *peers* ]]; then
    if ! { command -v node && command -v npm; } >/dev/null; then
        fail "part peers needs Node.js 20 or later with npm (Debian: apt-get install npm), or leave it out with --only"
    fi
    peer=target/bench/node
    mkdir -p "$peer"
    cp bench/peers/node/package.json bench/peers/node/package-lock.json bench/peers/node/worker.mjs "$peer/"
    npm ci --silent --no-audit --no-fund --prefix "$peer" ||
        fail "npm cannot install the libraries of bench/peers/node"
fi
exec "$target/$profile/examples/bench" "$@"
