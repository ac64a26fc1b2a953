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
database=${database%/*}/kyc
if ! postgres_answers "$database"; then
    command -v psql >/dev/null || fail "psql is missing; install it, or create the database kyc yourself"
    psql "$DATABASE_URL" -Xq -v ON_ERROR_STOP=1 -c 'create database kyc' || fail "cannot create the database kyc"
fi
# Without openssl: two keys of 32 bytes.
payload_key=$(head -c 32 /dev/urandom | base64 -w 0)
fingerprint_key=$(head -c 32 /dev/urandom | base64 -w 0)
umask 077
sed -e "s|^DATABASE_URL=.*|DATABASE_URL=$database|" \
    -e "s|^AMQP_URL=.*|AMQP_URL=$AMQP_URL|" \
    -e "s|^PAYLOAD_KEY=.*|PAYLOAD_KEY=$payload_key|" \
    -e "s|^FINGERPRINT_KEY=.*|FINGERPRINT_KEY=$fingerprint_key|" \
    -e '/^# The key here is published/d' .env.example >.env
say ".env is written: $(place "$database" 5432)/kyc, $(place "$AMQP_URL" 5672), the simulated provider, keys of its own"
