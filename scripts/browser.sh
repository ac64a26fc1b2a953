#!/usr/bin/env bash
# Brings what the tests of the console's pages want: Chromium from the distribution, unless a Chrome is
# there, and from npm what drives it and what judges its pages, to target/browser, once.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

directory=$PWD/target/browser
node=(playwright-core@1.65.1 axe-core@4.14.1)
wanted="${node[*]}"
browser() { command -v chromium || command -v google-chrome; }
has_programs() { command -v node >/dev/null && command -v npm >/dev/null && browser >/dev/null; }
[[ $(cat "$directory/installed" 2>/dev/null) == "$wanted" && -x $(cat "$directory/program" 2>/dev/null) ]] && exit

mkdir -p "$directory"
log=$directory/install.log
if ! has_programs; then
    remedy="install Node.js with npm, and Chromium (Debian: apt-get install npm chromium)"
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        fail "the tests of the console's pages need both; $remedy"
    fi
    packages=()
    browser >/dev/null || packages+=(chromium)
    command -v npm >/dev/null || packages+=(npm)
    say "${packages[*]}: installing with apt-get (once)"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        "${packages[@]}"; } >"$log" 2>&1 || fail "apt-get could not install them; see $log"
fi
say "what drives the browser: $wanted (once)"
npm install --loglevel=error --no-audit --no-fund --prefix "$directory" "${node[@]}" >>"$log" 2>&1 ||
    fail "cannot install them from npm; see $log"
browser >"$directory/program"
printf '%s' "$wanted" >"$directory/installed"
