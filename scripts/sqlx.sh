#!/usr/bin/env bash
# Describes every query anew, against a fresh database with all migrations.
#
#   scripts/sqlx.sh             replaces .sqlx
#   scripts/sqlx.sh --check     fails if .sqlx is not what it would become
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
command -v psql >/dev/null || fail "psql is missing; install it (Debian: apt-get install postgresql-client)"
scripts/services.sh test
# shellcheck source=/dev/null
source target/services.env

# With psql and not with our own binary: that one may not compile until this is done.
name=kyc_sqlx_$$
# The same server and options, another database.
url=${TEST_DATABASE_URL%%\?*}
url=${url%/*}/$name${TEST_DATABASE_URL#"$url"}
described=$(mktemp -d)
run_sql() { PGOPTIONS='-c client_min_messages=warning' psql "$TEST_DATABASE_URL" -Xq -v ON_ERROR_STOP=1 -c "$1"; }
tidy_up() {
    run_sql "drop database if exists $name" || true
    rm -rf "$described"
}
trap tidy_up EXIT
run_sql "create database $name"
for migration in migrations/*.sql; do
    # As sqlx runs it: in a transaction, unless its first line says otherwise.
    in_transaction=(-1)
    [[ $(head -n 1 "$migration") == "-- no-transaction"* ]] && in_transaction=()
    psql "$url" -Xq -v ON_ERROR_STOP=1 "${in_transaction[@]}" -f "$migration"
done

# The macros run only where the crate is compiled.
touch src/lib.rs
SQLX_OFFLINE=false DATABASE_URL=$url SQLX_OFFLINE_DIR=$described \
    cargo check --locked --quiet --all-features --lib --package kyc-worker
[[ -n $(ls "$described") ]] || fail "no query was described; does the crate have any?"

if [[ ${1-} == --check ]]; then
    if ! diff -r "$described" .sqlx >/dev/null; then
        diff -rq "$described" .sqlx >&2 || true
        fail ".sqlx is not current; run: make sqlx"
    fi
    say ".sqlx is current: $(find .sqlx -type f | wc -l) queries"
else
    rm -rf .sqlx
    cp -r "$described" .sqlx
    chmod 755 .sqlx
    say ".sqlx: $(find .sqlx -type f | wc -l) queries described"
fi
