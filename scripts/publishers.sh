#!/usr/bin/env bash
# Brings the client libraries of the Python and Node.js examples in docs/publishing.md and docs/consuming.md
# to target/publishers, once; the tests run those examples as they stand in the documents.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

directory=$PWD/target/publishers
python=(pika==1.4.4 kombu==5.7.0 opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2)
node=(amqplib@2.3.1 pg@8.23.1 @opentelemetry/api@1.9.1 @opentelemetry/sdk-trace-node@2.12.1
    @opentelemetry/exporter-trace-otlp-proto@0.223.1)
wanted="${python[*]} ${node[*]}"
[[ $(cat "$directory/installed" 2>/dev/null) == "$wanted" ]] && exit

has_python() { python3 -c 'import venv, ensurepip' 2>/dev/null; }
has_node() { command -v node >/dev/null && command -v npm >/dev/null; }

mkdir -p "$directory"
log=$directory/install.log
if ! { has_python && has_node; }; then
    remedy="install Python 3 with venv, and Node.js with npm (Debian: apt-get install python3-venv npm)"
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        fail "the tests of docs/publishing.md and docs/consuming.md need both; $remedy"
    fi
    say "python3-venv, npm: installing them with apt-get (once)"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3-venv npm; } >"$log" 2>&1 || fail "apt-get could not install them; see $log"
fi
say "publishers' libraries: $wanted (once)"
{ python3 -m venv "$directory/venv" && "$directory/venv/bin/pip" install --quiet "${python[@]}" &&
    npm install --loglevel=error --no-audit --no-fund --prefix "$directory" "${node[@]}"; } >>"$log" 2>&1 ||
    fail "cannot install them from PyPI and npm; see $log"
printf '%s' "$wanted" >"$directory/installed"
