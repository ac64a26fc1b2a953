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

# Integration tests wait for services more than they compute.
log=target/test.log
if "${run[@]}" --no-fail-fast -- --test-threads=6 2>&1 | tee "$log"; then
    exit 0
fi
# Leases and looks have real deadlines, which a machine that starves five tests at once can
# miss. A few that failed beside others get one more chance alone, and are named.
mapfile -t failed < <(sed -nE 's/^test ([a-z_0-9:]+) \.\.\. FAILED$/\1/p' "$log" | sort -u)
if ((${#failed[@]} == 0 || ${#failed[@]} > 5)); then
    fail "${#failed[@]} tests failed; see above"
fi
say ""
say "Failed beside others; each must pass alone:"
printf '  %s\n' "${failed[@]}" >&2
"${run[@]}" -- --test-threads=1 --exact "${failed[@]}"
say "Passed, with ${#failed[@]} only alone: $(printf '%s ' "${failed[@]}")"
