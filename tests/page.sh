#!/usr/bin/env bash
# Opens the status page in headless Chromium, with load, doubts, a pause and a restart of the gateway behind it.
#
#   tests/page.sh BINARY [SCRIPT]
#
# SCRIPT is tests/page/check.mjs unless named. Chromium is the system's, or $CHROMIUM; what drives it comes from npm, to
# target/tools. Exit code 77: skipped, as one of them is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -ge 1 ] || {
  printf 'usage: tests/page.sh BINARY [SCRIPT]\n' >&2
  exit 2
}
binary=$(realpath "$1")
script=$(realpath "${2:-tests/page/check.mjs}")

skip() {
  printf 'SKIPPED: %s\n' "$*"
  exit 77
}

browser=${CHROMIUM:-}
for name in chromium chromium-browser google-chrome; do
  [ -n "$browser" ] || browser=$(command -v "$name" || true)
done
[ -n "$browser" ] || skip "no Chromium: apt-get install chromium"
command -v node >/dev/null || skip "no Node.js: apt-get install nodejs npm"

tools=$PWD/target/tools/page
wanted="playwright-core@1.65.1 axe-core@4.14.1"
if [ "$(cat "$tools/stamp" 2>/dev/null)" != "$wanted" ]; then
  command -v npm >/dev/null || skip "no npm: apt-get install npm"
  mkdir -p "$tools"
  # No script has to run, and no browser is downloaded.
  # shellcheck disable=SC2086
  npm install --prefix "$tools" --no-save --no-audit --no-fund --ignore-scripts --loglevel=error $wanted ||
    skip "npm could not install $wanted"
  printf '%s\n' "$wanted" >"$tools/stamp"
fi

# Only what the script says decides how the gateway runs.
for name in $(compgen -e); do
  case $name in GATEWAY_* | SURVEYLAB_* | RUST_LOG) unset "$name" ;; esac
done
BROWSER=$browser PAGE_TOOLS=$tools exec node "$script" "$binary"
