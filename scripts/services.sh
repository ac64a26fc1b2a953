#!/usr/bin/env bash
# Makes PostgreSQL and RabbitMQ answer, and writes where they are to target/services.env. The tests
# want promtool, prometheus, tinyproxy, pgbouncer and nginx beside them, which it installs in the same way.
#
#   scripts/services.sh [demo|test]     for the one or the other; both by default
#
# 1. Uses what answers already: for the demo at DATABASE_URL and AMQP_URL (environment, or
#    .env), for the tests at TEST_DATABASE_URL, TEST_AMQP_URL and TEST_RABBITMQ_MANAGEMENT_URL.
# 2. Where none is set, looks on this machine, at the usual ports.
# 3. Else starts them: with Docker where it runs; else, as root on Debian or Ubuntu, with
#    apt-get; else says what to do.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

# Of each local server, in this order: one that trusts its machine, and the role that we make.
# Debian knows of servers on other ports than the usual one.
local_database_urls() {
    local port
    for port in 5432 $(pg_lsclusters -h 2>/dev/null | awk '$3 != 5432 { print $3 }'); do
        echo "postgres://postgres@127.0.0.1:$port/postgres" "postgres://kyc:kyc@127.0.0.1:$port/postgres"
    done
}
LOCAL_AMQP_URL=amqp://guest:guest@127.0.0.1:5672
LOCAL_MANAGEMENT_URL=http://guest:guest@127.0.0.1:15672

has_docker() {
    command -v docker >/dev/null && docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1
}

is_apt_root() { [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; }

# Starts service $1 of compose.yaml, or installs and starts it with function $2: none answers at $3.
start() {
    if has_docker; then
        say "$1: starting it with docker compose (the first time, its image is downloaded)"
        docker compose up -d --wait "$1" >&2 || fail "docker compose could not start $1; see above"
    elif is_apt_root; then
        "$2"
    else
        fail "no $1 lets us in at $3, and I cannot start one here. Any of these helps, then try again:
  - start Docker:                         docker compose up -d --wait
  - on Debian or Ubuntu, let me install:  sudo make services
  - name servers that run elsewhere:      DATABASE_URL, AMQP_URL (demo); TEST_DATABASE_URL, TEST_AMQP_URL,
                                          TEST_RABBITMQ_MANAGEMENT_URL (tests)"
    fi
}

install() {
    say "$1: installing it with apt-get (once; about a minute)"
    # Packages start their own service; where that fails, as in containers, we start it below.
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1"; } \
        >>target/services.log 2>&1; then
        tail -n 5 target/services.log >&2
        fail "apt-get could not install $1; the whole story is in target/services.log"
    fi
}

# The same of a package whose service is not wanted: it is started neither now nor when the machine is.
install_without_service() {
    if [[ -e /usr/sbin/policy-rc.d ]]; then
        install "$1"
    else
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
        install "$1"
        rm -f /usr/sbin/policy-rc.d
        trap - EXIT
    fi
    update-rc.d "$1" disable >>target/services.log 2>&1 ||
        fail "the service $1 was installed for the tests, and cannot be switched off; see target/services.log"
}

as_postgres() { (cd / && runuser -u postgres -- "$@"); }

start_debian_postgres() {
    command -v pg_lsclusters >/dev/null || install postgresql
    local version name port status
    if ! read -r version name port status _ < <(pg_lsclusters -h); then
        fail "PostgreSQL is installed but has no cluster; make one: pg_createcluster 15 main"
    fi
    if [[ $status != online* ]]; then
        say "postgres: starting $version/$name"
        pg_ctlcluster "$version" "$name" start >>target/services.log 2>&1 ||
            fail "PostgreSQL does not start; see /var/log/postgresql and target/services.log"
    fi
    wait_until 30 as_postgres psql -p "$port" -XAtqc 'select 1' >/dev/null 2>&1 ||
        fail "PostgreSQL was started but does not answer; see /var/log/postgresql"
    # Debian's default wants a password of whoever comes over TCP, and no role has one yet.
    as_postgres psql -p "$port" -Xq -v ON_ERROR_STOP=1 >>target/services.log 2>&1 <<'SQL' ||
select 'create role kyc login createdb password ''kyc''' where not exists (select from pg_roles where rolname = 'kyc') \gexec
select 'create database kyc owner kyc' where not exists (select from pg_database where datname = 'kyc') \gexec
SQL
        fail "cannot make the role kyc in PostgreSQL; see target/services.log"
}

start_debian_rabbitmq() {
    command -v rabbitmqctl >/dev/null || install rabbitmq-server
    if ! rabbitmqctl -q ping >>target/services.log 2>&1; then
        say "rabbitmq: starting it"
        # Not with systemd's help: it is missing in containers.
        rabbitmq-server -detached >>target/services.log 2>&1 || true
    fi
    # Until its node is known, it cannot be waited for: that fails at once.
    wait_until 60 rabbitmqctl -q await_startup --timeout 60 >>target/services.log 2>&1 ||
        fail "RabbitMQ was started but does not come up; see /var/log/rabbitmq and target/services.log"
}

# The PostgreSQL to use, $1 being the name and $2 the value of its setting.
find_postgres() {
    local url candidates started=no
    while true; do
        # Anew: what was installed meanwhile may listen on another port.
        read -r -d '' -a candidates < <(printf '%s\n\0' "${2:-$(local_database_urls)}")
        for url in "${candidates[@]}"; do
            if postgres_answers "$url"; then
                found=$url
                return
            fi
        done
        if [[ $started == yes ]] || ! is_local "${candidates[0]}"; then
            fail "$1: no PostgreSQL answers at $(place "${candidates[-1]}" 5432); is it running, and are user and password right?"
        fi
        start postgres start_debian_postgres "$(place "${candidates[-1]}" 5432)"
        started=yes
    done
}

# The RabbitMQ to use, $1 being the name and $2 the value of its setting.
find_rabbitmq() {
    found=${2:-$LOCAL_AMQP_URL}
    rabbitmq_answers "$found" && return
    is_local "$found" || fail "$1: no RabbitMQ answers at $(place "$found" 5672); is it running?"
    start rabbitmq start_debian_rabbitmq "$(place "$found" 5672)"
    wait_until 30 rabbitmq_answers "$found" ||
        fail "$1: RabbitMQ was started but does not answer at $(place "$found" 5672)"
}

# The management API, with which every test makes a vhost of its own.
find_management() {
    found=${2:-$LOCAL_MANAGEMENT_URL}
    management_answers "$found" && return
    if is_local "$found" && is_apt_root && command -v rabbitmq-plugins >/dev/null; then
        say "rabbitmq: enabling its management plugin, which the tests use"
        rabbitmq-plugins -q enable rabbitmq_management >>target/services.log 2>&1 || true
    fi
    wait_until 20 management_answers "$found" ||
        fail "$1: RabbitMQ's management API does not answer at $(place "$found" 15672), or refuses the user;
  enable it with: rabbitmq-plugins enable rabbitmq_management"
}

# What the tests start of Debian's package $2: program $3, and others. $1 is what installs it.
find_programs() {
    local package=$2 program
    for program in "${@:3}"; do
        # An ordinary user's path may not lead to it.
        PATH=$PATH:/usr/sbin command -v "$program" >/dev/null && continue
        is_apt_root || fail "$program is missing, which the tests use; install it (Debian: apt-get install $package)"
        "$1" "$package"
        return
    done
}

# Notes a finding: for people now, for the scripts in target/services.env.
note() {
    printf 'export %s=%q\n' "$1" "$found" >>target/services.env.new
    say "  $(printf '%-29s' "$1") $(place "$found" "$2")"
}

main() {
    local scope=${1:-all}
    [[ $scope =~ ^(all|demo|test)$ ]] || fail "usage: scripts/services.sh [demo|test]"
    mkdir -p target
    [[ -w target ]] || fail "target/ is another user's; give it back: sudo chown -R $(id -un) target"
    : >target/services.env.new
    : >target/services.log
    say "PostgreSQL and RabbitMQ:"
    if [[ $scope != test ]]; then
        find_postgres DATABASE_URL "$(setting DATABASE_URL)" && note DATABASE_URL 5432
        find_rabbitmq AMQP_URL "$(setting AMQP_URL)" && note AMQP_URL 5672
    fi
    if [[ $scope != demo ]]; then
        find_programs install prometheus promtool prometheus
        find_programs install tinyproxy-bin tinyproxy
        find_programs install pgbouncer pgbouncer
        # It would take port 80.
        find_programs install_without_service nginx nginx
        find_postgres TEST_DATABASE_URL "$(setting TEST_DATABASE_URL)"
        # TLS has tests of its own, and costs an unoptimized build more than most statements do.
        if is_local "$found" && [[ $found != *\?* ]]; then found+='?sslmode=disable'; fi
        note TEST_DATABASE_URL 5432
        find_rabbitmq TEST_AMQP_URL "$(setting TEST_AMQP_URL)" && note TEST_AMQP_URL 5672
        find_management TEST_RABBITMQ_MANAGEMENT_URL "$(setting TEST_RABBITMQ_MANAGEMENT_URL)"
        note TEST_RABBITMQ_MANAGEMENT_URL 15672
    fi
    mv target/services.env.new target/services.env
    chmod 600 target/services.env
    # For whoever goes on without being root: who called sudo, or whose checkout it is.
    if [[ $EUID -eq 0 ]]; then
        chown "${SUDO_UID:-$(stat -c %u .)}:${SUDO_GID:-$(stat -c %g .)}" target target/services.env target/services.log
    fi
}

found=
main "$@"
