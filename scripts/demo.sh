#!/usr/bin/env bash
# Sends 2,000 jobs through the worker and reconciles what the provider saw with the tables.
# DEMO_PROFILE=dev uses the build of the tests instead of an optimized one.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
scripts/services.sh demo
# shellcheck source=/dev/null
source target/services.env

profile=${DEMO_PROFILE:-quick}
directory=$profile
[[ $profile == dev ]] && directory=debug
target=${CARGO_TARGET_DIR:-target}
quiet=--quiet
if [[ ! -x $target/$directory/examples/demo ]]; then
    say "Building; the first time, it takes a few minutes."
    quiet=
fi
cargo build --locked ${quiet:+"$quiet"} --profile "$profile" --bins --example demo
exec "$target/$directory/examples/demo" "$@"
