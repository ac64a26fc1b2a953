#!/usr/bin/env bash
# Sends 2,000 jobs through the worker and reconciles what the provider saw with the tables.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
scripts/services.sh demo
# shellcheck source=/dev/null
source target/services.env

build_programs dev kyc-worker dollarpe-sandbox demo
exec "$programs/demo" "$@"
