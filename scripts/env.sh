#!/usr/bin/env bash
# Writes .env for development: .env.example with the PostgreSQL and RabbitMQ of this machine,
# a database `kyc` there, and fresh keys. A .env that is there already stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

if [[ -e .env ]]; then
    say ".env is there already and stays as it is; remove it to have it written anew"
    exit
fi
scripts/services.sh demo
# shellcheck source=/dev/null
source target/services.env

# The same server and role, our own database.
database=${DATABASE_URL%%\?*}
parameters=${DATABASE_URL#"$database"}
database=${database%/*}/kyc$parameters
if ! postgres_answers "$database"; then
    command -v psql >/dev/null || fail "psql is missing; install it, or create the database kyc yourself"
    psql "$DATABASE_URL" -Xq -v ON_ERROR_STOP=1 -c 'create database kyc' || fail "cannot create the database kyc"
fi
# Without openssl: two keys of 32 bytes.
payload_key=$(head -c 32 /dev/urandom | base64 -w 0)
fingerprint_key=$(head -c 32 /dev/urandom | base64 -w 0)
# A URL as .env may hold it without quotes, which not every reader of it takes off.
escape() {
    local url=$1
    url=${url//\\/%5C}
    url=${url//\$/%24}
    url=${url//\#/%23}
    url=${url//\'/%27}
    url=${url//\"/%22}
    printf '%s' "${url// /%20}"
}
umask 077
while IFS= read -r line; do
    case $line in
        DATABASE_URL=*) line="DATABASE_URL=$(escape "$database")" ;;
        AMQP_URL=*) line="AMQP_URL=$(escape "$AMQP_URL")" ;;
        PAYLOAD_KEY=*) line="PAYLOAD_KEY=$payload_key" ;;
        FINGERPRINT_KEY=*) line="FINGERPRINT_KEY=$fingerprint_key" ;;
        "# The key here is published"*) continue ;;
    esac
    printf '%s\n' "$line"
done <.env.example >.env
say ".env is written: $(place "$database" 5432)/kyc, $(place "$AMQP_URL" 5672), the simulated provider, keys of its own"
