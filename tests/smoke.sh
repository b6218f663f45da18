#!/usr/bin/env bash
# Runs README's first commands as they stand there, and compares what they print with what README shows.
#
# Without grpcurl its call is made by `buf curl`, which speaks gRPC and server reflection as well: $BUF names it.
# Where README's ports are taken, the gateway gets others.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

fail() {
  printf 'smoke test: %s\n' "$*" >&2
  exit 1
}

# block LANGUAGE NUMBER: the content of README's fenced blocks, in their order.
block() {
  awk -v fence="\`\`\`$1" -v wanted="$2" '
    $0 == fence { inside = ++count == wanted; next }
    /^```/ { inside = 0 }
    inside
  ' README.md
}

serve=$(block sh 1)
call=$(block sh 2)
shown=$(block json 1)
[[ $serve == "cargo run --release -- serve --sandbox" ]] || fail "README does not begin with the command that serves"
[[ $call == grpcurl\ *AddRespondent ]] || fail "README's second command does not add a respondent"
[[ $shown == *outcome* ]] || fail "README shows no answer to it"

directory=$(mktemp -d)
server=
finish() {
  if [ -n "$server" ]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$directory"
}
trap finish EXIT

# Only what README says decides; but the ledger is a new one, and stays out of the repository.
for name in $(compgen -e); do
  case $name in GATEWAY_* | SURVEYLAB_* | RUST_LOG) unset "$name" ;; esac
done
export GATEWAY_LEDGER=sqlite:$directory/ledger.db

taken() { (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
if taken 50051 || taken 9464; then
  printf 'port 50051 or 9464 is taken: the gateway gets free ones\n'
  export GATEWAY_LISTEN=127.0.0.1:0 GATEWAY_ADMIN_LISTEN=127.0.0.1:0
fi

# Built before, so that a build that fails is told from a gateway that does not start.
cargo build --release --locked

printf '$ %s\n' "$serve"
mkfifo "$directory/log"
# cargo run becomes the program it runs, and this shell becomes cargo run: the process is the gateway.
(eval "exec $serve" 2>"$directory/log") &
server=$!
exec {log}<"$directory/log"
address=
while [ -z "$address" ] && IFS= read -r line <&"$log"; do
  printf '%s\n' "$line"
  if [[ $line == *'"message":"listening"'* && $line =~ \"grpc\":\"([^\"]*)\" ]]; then
    address=${BASH_REMATCH[1]}
  fi
done
[ -n "$address" ] || fail "the gateway ended before it listened"
binary=${CARGO_TARGET_DIR:-target}/release/surveylab-gateway
[ "$("$binary" healthcheck --target "$address")" = serving ] || fail "the gateway does not serve"

if ! command -v grpcurl >/dev/null; then
  [ -x "${BUF:-}" ] || fail "neither grpcurl nor buf is there"
  printf 'grpcurl is missing: buf curl makes its calls\n'
  # grpcurl -plaintext -d DATA ADDRESS METHOD
  grpcurl() {
    [ $# -eq 5 ] && [ "$1 $2" = "-plaintext -d" ] || fail "a call that is not understood: grpcurl $*"
    "$BUF" curl --protocol grpc --http2-prior-knowledge --data "$3" "http://$4/$5"
  }
fi

# expect OUTCOME: makes README's call and compares the answer with what README shows, times aside.
expect() {
  local answer
  answer=$(eval "${call//localhost:50051/$address}") || fail "the call failed"
  printf '%s\n' "$answer"
  python3 - "$shown" "$answer" "$1" <<'PYTHON' || fail "README shows another answer"
import json, sys

shown, answer = (json.loads(text) for text in sys.argv[1:3])
shown["outcome"] = sys.argv[3]
for fields in (shown, answer):
    fields["addedAt"] = "addedAt" in fields
sys.exit(shown != answer and f"README shows {shown}\nthe answer is {answer}")
PYTHON
}
[[ $shown == *'"outcome": "OUTCOME_ADDED"'* ]] || fail "README's answer does not say that it added"
printf '$ %s\n' "$call"
expect OUTCOME_ADDED
printf '$ %s    # again\n' "$call"
expect OUTCOME_DUPLICATE

kill -INT "$server"
cat <&"$log"
code=0
wait "$server" || code=$?
server=
[ "$code" -eq 0 ] || fail "the gateway ended with exit code $code"
printf 'smoke test: passed\n'
