#!/usr/bin/env bash
# Measures the worker against the same without a database, on this machine.
# What is given is passed on: scripts/bench.sh --latency 50ms --runs 3
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
cargo build --locked --quiet --profile "$profile" --bins --example bench --example ceiling
exec "$target/$profile/examples/bench" "$@"
