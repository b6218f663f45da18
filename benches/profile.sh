#!/usr/bin/env bash
# Where the gateway's time goes: a flame graph of its threads under load. Needs perf (Debian: linux-perf).
#
#   benches/profile.sh unary|stream FILE.svg
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1-} in
  unary) in_flight=64 ;;
  stream) in_flight=256 ;;
  *)
    printf 'usage: benches/profile.sh unary|stream FILE.svg\n' >&2
    exit 2
    ;;
esac
method=$1
out=${2:?usage: benches/profile.sh unary|stream FILE.svg}

# Frame pointers, so that stacks can be read, and names; otherwise as it is released.
export CARGO_TARGET_DIR=$PWD/target/profile CARGO_PROFILE_RELEASE_DEBUG=line-tables-only CARGO_PROFILE_RELEASE_STRIP=none
RUSTFLAGS="-C force-frame-pointers=yes" CFLAGS=-fno-omit-frame-pointer \
  cargo build --release --locked --bin surveylab-gateway
unset CARGO_TARGET_DIR CARGO_PROFILE_RELEASE_DEBUG CARGO_PROFILE_RELEASE_STRIP
load=$(cargo bench --locked --bench peers --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
tools=$PWD/target/tools
[ -x "$tools/bin/inferno-flamegraph" ] || cargo install inferno --locked --no-default-features --features cli --root "$tools"

scratch=$(mktemp -d target/profile/load.XXXXXX)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$scratch"' EXIT
"$load" stub >"$scratch/stub" &
until [ -s "$scratch/stub" ]; do sleep 0.1; done
printf 'token' >"$scratch/token"
listen=127.0.0.1:50951
target/profile/release/surveylab-gateway serve --rate 1000000/s --burst 100000 --max-in-flight 4096 \
  --listen "$listen" --admin-listen 127.0.0.1:50952 --surveylab-url "http://$(cat "$scratch/stub")/webhook" \
  --ledger "sqlite:$scratch/ledger.db" --api-token-file "$scratch/token" --log-format text 2>"$scratch/log" &
gateway=$!
until grep -q listening "$scratch/log"; do sleep 0.1; done
(sleep 2 && exec perf record --quiet --event cpu-clock --freq 997 --call-graph fp --pid "$gateway" \
  --output "$scratch/perf.data" -- sleep 8) &
recorder=$!
"$load" load --target "$listen" --method "$method" --in-flight "$in_flight" --seconds 11 --process "$gateway"
wait "$recorder" || true
perf script --input "$scratch/perf.data" 2>/dev/null | "$tools/bin/inferno-collapse-perf" |
  "$tools/bin/inferno-flamegraph" --title "$method, all keys new, SQLite ledger" --minwidth 0.3 >"$out"
printf '%s\n' "$out"
