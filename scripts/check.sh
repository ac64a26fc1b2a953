#!/usr/bin/env bash
# Everything that can be wrong with the code before it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

for tool in cargo-deny cargo-machete; do
    command -v "$tool" >/dev/null || fail "$tool is missing; install it: cargo install --locked $tool"
done
step "formatting"
cargo fmt --all --check
step ".sqlx describes the queries"
scripts/sqlx.sh --check
step "clippy, with the points to crash at and without"
cargo clippy --locked --workspace --all-targets --all-features --quiet -- -D warnings
cargo clippy --locked --package kyc-worker --lib --bins --quiet -- -D warnings
step "documentation"
RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps --quiet
step "dependencies: duplicates, licences, sources"
cargo deny --locked check --hide-inclusion-graph bans licenses sources
step "dependencies: none unused"
cargo machete
step "shell scripts"
for script in scripts/*.sh .ci/run; do
    bash -n "$script"
done
if command -v shellcheck >/dev/null; then
    shellcheck -x scripts/*.sh .ci/run
fi
step "deployment files"
scripts/lint-deploy.sh
say "checks passed"
