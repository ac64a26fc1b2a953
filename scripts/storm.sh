#!/usr/bin/env bash
# Kills replicas, broker and database under load for a while, and compares every record with
# what the provider saw. What is given is passed on: scripts/storm.sh --minutes 3 --seed 7
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

# PostgreSQL's own programs are not in the path everywhere; Debian hides them by version.
postgres_programs() {
    local initdb
    initdb=$(command -v initdb || find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
    [[ -n $initdb ]] && dirname "$(readlink -f "$initdb")"
}

# RabbitMQ's own start script: Debian's wrapper in the path knows one broker only.
rabbitmq_server() {
    local script=/usr/lib/rabbitmq/bin/rabbitmq-server
    if [[ -x $script ]]; then printf '%s' "$script"; else command -v rabbitmq-server; fi
}

arguments=()
if ! [[ " $* " =~ \ --own-services[=\ ]false\  ]]; then
    if ! { postgres_programs && rabbitmq_server; } >/dev/null; then
        # Installs them where it may.
        scripts/services.sh demo
    fi
    programs=$(postgres_programs) || fail "initdb is missing; install PostgreSQL's server (Debian: apt-get install postgresql), or use --own-services false"
    server=$(rabbitmq_server) || fail "rabbitmq-server is missing; install it (Debian: apt-get install rabbitmq-server), or use --own-services false"
    arguments=(--postgres-programs "$programs" --rabbitmq-server "$server")
    if [[ $EUID -eq 0 ]]; then
        # PostgreSQL refuses to run as root.
        arguments+=(--postgres-user "$(id -u postgres 2>/dev/null || id -u nobody)")
    fi
else
    scripts/services.sh demo
    # shellcheck source=/dev/null
    source target/services.env
fi

build_programs dev
exec "$programs/storm" "${arguments[@]}" "$@"
