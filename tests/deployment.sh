#!/usr/bin/env bash
# Checks the deployment files, as far as that goes without a cluster, an engine for containers or a systemd that runs.
#
#     deployment.sh PYTHON BINARY      PYTHON has tests/python/requirements.txt
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 binary=$2
bin=$(dirname "$python")
have() { command -v "$1" >/dev/null 2>&1; }

"$python" tests/deployment.py "$binary"

printf '\n--- Kubernetes\n'
# The oldest version that has all that is used, and the latest that the schemas are there for. Those of Kustomize and of
# Prometheus' operator are not.
for version in 1.32 1.37; do
  "$bin/kubernetes-validate" --strict --quiet --no-warn --kubernetes-version "$version" \
    deploy/kubernetes/{common,replicas,single}/*.yaml
  printf 'valid by the schemas of %s\n' "$version"
done
if have kubectl; then
  for variant in replicas single; do
    kubectl kustomize "deploy/kubernetes/$variant" >"target/$variant.yaml"
    "$bin/kubernetes-validate" --strict --quiet --no-warn "target/$variant.yaml"
    printf '%s: %s objects\n' "$variant" "$(grep -c '^kind:' "target/$variant.yaml")"
  done
else
  printf 'kubectl is not there: the kustomizations were not built\n'
fi

printf '\n--- Containerfile\n'
"$bin/hadolint" deploy/container/Containerfile
printf 'clean; no image was built\n'

printf '\n--- systemd\n'
unit=deploy/systemd/surveylab-gateway.service
if have systemd-analyze; then
  # Where the package puts it, it is there.
  mkdir -p target/unit
  installed=target/unit/surveylab-gateway.service
  sed "s|^ExecStart=[^ ]*|ExecStart=$(readlink -f "$binary")|" "$unit" >"$installed"
  said=$(systemd-analyze verify --man=no "$PWD/$installed" 2>&1) || said+=" (failed)"
  # What it says of other units of this machine is not asked.
  if printf '%s\n' "$said" | grep -e 'surveylab-gateway' -e '(failed)'; then
    exit 1
  fi
  # In tenths: 1.5 of 10.
  systemd-analyze security --offline=true --no-pager --threshold=15 "$unit" | tail -1
else
  printf 'systemd-analyze is not there: the unit was not checked\n'
fi
