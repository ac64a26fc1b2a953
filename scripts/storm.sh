#!/usr/bin/env bash
# Kills replicas, broker and database under load for a while, and compares every record with
# what the provider saw. What is given is passed on: scripts/storm.sh --minutes 3 --seed 7
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

# Whether the programs are there of which the storm starts services of its own.
has_programs() {
    { command -v initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb'; } &&
        { command -v rabbitmq-server || [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]]; }
}

if ! [[ " $* " =~ \ --own-services[=\ ]false\  ]]; then
    # Installs them where it may.
    has_programs >/dev/null || scripts/services.sh demo
else
    scripts/services.sh demo
    # shellcheck source=/dev/null
    source target/services.env
fi

build_programs dev kyc-worker storm
exec "$programs/storm" "$@"
