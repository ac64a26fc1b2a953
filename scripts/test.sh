#!/usr/bin/env bash
# Runs every test: unit, integration (over real services, with points to crash at), documentation.
# What is given is passed on to cargo test: scripts/test.sh --test it broker
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/services.sh test
# shellcheck source=/dev/null
source target/services.env
# Integration tests wait for services more than they compute.
if [[ $# -eq 0 ]]; then
    exec cargo test --locked --features failpoints -- --test-threads=6
fi
exec cargo test --locked --features failpoints "$@"
