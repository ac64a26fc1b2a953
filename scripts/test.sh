#!/usr/bin/env bash
# Runs every test: unit, integration (over real services, with points to crash at), documentation.
# What is given is passed on to cargo test: scripts/test.sh --test it broker
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
scripts/services.sh test
scripts/publishers.sh
scripts/browser.sh
# shellcheck source=/dev/null
source target/services.env

run_tests "$@"
