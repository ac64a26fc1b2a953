#!/usr/bin/env bash
# Runs every test so many times in a row (five, unless told), each time beside two busy loops, and
# stops at the first failure: no test may need an idle machine, nor a second try.
#
#   scripts/test-stress.sh [RUNS]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
runs=${1:-5}
[[ $runs =~ ^[1-9][0-9]*$ ]] || fail "usage: scripts/test-stress.sh [RUNS]"

scripts/test.sh --no-run

# They end with this script, however it ends.
for _ in 1 2; do
    sh -c 'while kill -0 "$0"; do :; done 2>/dev/null' $$ &
done
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

for ((run = 1; run <= runs; run++)); do
    begun=$SECONDS
    scripts/test.sh || fail "run $run of $runs failed after $((SECONDS - begun)) s"
    say "run $run of $runs passed in $((SECONDS - begun)) s"
done
