# Sourced by the other scripts: how they speak, and how they look for PostgreSQL and
# RabbitMQ with nothing but bash. Knows where a URL points, not which URL is wanted.
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }

step() { printf '\n==> %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The value of variable $1: the environment's, else that of .env. Nothing in .env is run.
setting() {
    local value=${!1-}
    if [[ -z $value && -f .env ]]; then
        value=$(sed -nE "s/^[[:space:]]*(export[[:space:]]+)?$1=//p" .env | tail -n 1)
        value=${value%$'\r'}
        value=${value#[\"\']}
        value=${value%[\"\']}
    fi
    printf '%s' "$value"
}

# Splits URL $1 into url_user, url_password, url_host and url_port ($2 by default).
split_url() {
    [[ $1 =~ ^[a-z]+://(([^:@/]*)(:([^@/]*))?@)?([^:/?]+)(:([0-9]+))? ]] || return 1
    url_user=$(unescape "${BASH_REMATCH[2]}")
    url_password=$(unescape "${BASH_REMATCH[4]}")
    url_host=${BASH_REMATCH[5]}
    url_port=${BASH_REMATCH[7]:-$2}
}

# Undoes %XX.
unescape() { printf '%b' "${1//%/\\x}"; }

# Where URL $1 points, without its password.
place() {
    split_url "$1" "$2" && printf '%s:%s' "$url_host" "$url_port"
}

is_local() {
    split_url "$1" 0 && [[ $url_host == 127.0.0.1 || $url_host == localhost ]]
}

# Whether anything listens at host $1, port $2.
# shellcheck disable=SC2016 # expanded by the inner bash
listens() { timeout 2 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>/dev/null; }

# Whether PostgreSQL answers URL $1. Without psql, an open port must do.
postgres_answers() {
    if command -v psql >/dev/null; then
        PGCONNECT_TIMEOUT=2 psql "$1" -XAtqc 'select 1' </dev/null >/dev/null 2>&1
    else
        split_url "$1" 5432 && listens "$url_host" "$url_port"
    fi
}

# Whether RabbitMQ greets us at URL $1: an AMQP frame, and not only an open port.
rabbitmq_answers() {
    split_url "$1" 5672 || return 1
    # shellcheck disable=SC2016 # expanded by the inner bash
    timeout 3 bash -c '
        exec 3<>"/dev/tcp/$0/$1"
        printf "AMQP\0\0\011\001" >&3
        [[ $(head -c 1 <&3 | od -An -tu1) -eq 1 ]]
    ' "$url_host" "$url_port" 2>/dev/null
}

# Whether RabbitMQ's management API lets us in at URL $1.
management_answers() {
    split_url "$1" 15672 || return 1
    local token
    token=$(printf '%s:%s' "$url_user" "$url_password" | base64 -w 0)
    # shellcheck disable=SC2016 # expanded by the inner bash
    timeout 3 bash -c '
        exec 3<>"/dev/tcp/$0/$1"
        printf "GET /api/whoami HTTP/1.0\r\nHost: %s\r\nAuthorization: Basic %s\r\n\r\n" "$0" "$2" >&3
        read -r _ status _ <&3
        [[ $status == 200 ]]
    ' "$url_host" "$url_port" "$token" 2>/dev/null
}

# Builds with profile $1 the programs that are named, and leaves in $programs where they lie.
build_programs() {
    programs=${CARGO_TARGET_DIR:-target}/${1/#dev/debug}
    local quiet=--quiet
    if [[ ! -x $programs/${*: -1} ]]; then
        say "Building; the first time, it takes a few minutes."
        quiet=
    fi
    local profile=$1
    shift
    cargo build --locked ${quiet:+"$quiet"} --profile "$profile" --workspace "${@/#/--bin=}"
}

# Runs the tests that cargo test's arguments name, or every one.
run_tests() {
    local run=(cargo test --locked --workspace --features failpoints)
    if [[ $# -gt 0 ]]; then
        "${run[@]}" "$@"
        return
    fi
    # Tests mostly wait, so several share a core. More would starve each other (leases and reads have real
    # deadlines), and PostgreSQL has a hundred connections.
    local threads=$(($(nproc) * 5 / 2))
    "${run[@]}" --no-fail-fast -- --test-threads=$((threads > 8 ? 8 : threads))
}

# Runs a check until it holds, for at most $1 seconds.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.3
    done
}
