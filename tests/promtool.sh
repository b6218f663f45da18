#!/usr/bin/env bash
# Checks what Prometheus reads (deploy/prometheus), tries the alert rules, and checks the dashboard's queries and that it is the one
# its script makes.
# Takes the promtool on the PATH, or that of Debian's package, which it unpacks in target/tools: it installs nothing.
# Exit code 77 and SKIPPED where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/target/tools
mkdir -p "$tools"
promtool=$(command -v promtool || true)
if [ -z "$promtool" ]; then
  promtool=$tools/prometheus/usr/bin/promtool
  if [ ! -x "$promtool" ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
    packages=$tools/prometheus-package
    mkdir -p "$packages"
    # Root's apt gives its rights up for a user that may not write here; that it then keeps them is worth no warning.
    if (cd "$packages" && apt-get download -qq -o APT::Sandbox::User=root prometheus) &&
      dpkg -x "$packages"/prometheus_*.deb "$packages/root"; then
      rm -rf "$tools/prometheus"
      mv "$packages/root" "$tools/prometheus"
    fi
    rm -rf "$packages"
  fi
fi
if [ ! -x "$promtool" ]; then
  printf 'SKIPPED: promtool is missing, and apt could not get it (the package is prometheus)\n'
  exit 77
fi
"$promtool" --version

python3 deploy/grafana/dashboard.py --check
queries=$(mktemp "$tools/queries.XXXXXX")
trap 'rm -f "$queries"' EXIT
python3 deploy/grafana/dashboard.py --rules >"$queries"
"$promtool" check rules "$queries"

cd deploy/prometheus
"$promtool" check rules alerts.yml
"$promtool" test rules alerts_test.yml
"$promtool" check config scrape.yml
