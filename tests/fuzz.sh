#!/usr/bin/env bash
# Fuzzes all that reads outside input: tests/fuzz.sh [SECONDS] [TARGET...], by default each target for 30 s. The targets
# and what they assert are in src/fuzz.rs; cargo's own tests run them too, over fuzz/corpus and a few thousand random
# inputs.
#
# libFuzzer is driven without cargo-fuzz. What cargo-fuzz would add are these flags of the compiler, which a stable
# toolchain takes as well, and a sanitizer of addresses, which needs nightly: the code under test is safe Rust, so
# its mistakes are panics. Debug assertions and overflow checks are on.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

seconds=${1:-30}
[ $# -eq 0 ] || shift
if [ $# -gt 0 ]; then
  targets=("$@")
else
  targets=()
  for file in fuzz/fuzz_targets/*.rs; do
    targets+=("$(basename "$file" .rs)")
  done
fi

if ! command -v c++ >/dev/null 2>&1; then
  printf 'SKIPPED: a C++ compiler is missing, for libFuzzer: apt-get install g++\n'
  exit 0
fi
host=$(rustc -vV | sed -n 's/^host: //p')
case $host in
  *-linux-gnu) ;;
  *)
    printf 'SKIPPED: libFuzzer is driven on Linux with glibc alone, and this is %s\n' "$host"
    exit 0
    ;;
esac

build=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
flags=(
  --cfg fuzzing
  -Cpasses=sancov-module
  -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
  -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares
)
# The versions under test are those of the gateway; cargo adds libFuzzer's own to the copy.
cp Cargo.lock fuzz/Cargo.lock
# A named target keeps the flags away from build scripts and macros, which link no libFuzzer.
env -u CARGO_ENCODED_RUSTFLAGS RUSTFLAGS="${flags[*]}" \
  cargo build --quiet --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$build"

run() {
  local target=$1
  # What is found is kept for the next run, outside of the source.
  local found=$build/corpus/$target log=$build/$target.log
  mkdir -p "$found" "$build/artifacts"
  local options=(-max_total_time="$seconds" -timeout=60 -print_final_stats=1 -artifact_prefix="$build/artifacts/$target-")
  [ -z "${SEED:-}" ] || options+=(-seed="$SEED")
  [ ! -f "fuzz/dictionaries/$target" ] || options+=(-dict="fuzz/dictionaries/$target")
  if "$build/$host/debug/$target" "${options[@]}" "$found" "fuzz/corpus/$target" >"$log" 2>&1; then
    awk -v target="$target" '
      $1 ~ /^#/ && $3 == "cov:" { cov = $4 }
      $1 == "stat::number_of_executed_units:" { runs = $2 }
      $1 == "stat::average_exec_per_sec:" { rate = $2 }
      END { printf "%-13s %9d runs, %6d a second, %5d edges\n", target, runs, rate, cov }' "$log"
  else
    printf '%s FAILED, see %s\n' "$target" "$log"
    # The panic, and the file with the input, which the target takes as its one argument.
    grep -E -A 2 "panicked at|^==.*ERROR|^Test unit written|^Base64" "$log" | head -n 30
    return 1
  fi
}

# As many at once as there are processors.
failed=()
while [ ${#targets[@]} -gt 0 ]; do
  now=("${targets[@]:0:$(nproc)}")
  targets=("${targets[@]:${#now[@]}}")
  running=()
  for target in "${now[@]}"; do
    run "$target" &
    running+=($!)
  done
  for index in "${!now[@]}"; do
    wait "${running[$index]}" || failed+=("${now[$index]}")
  done
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s. To run one input again: %s/%s/debug/TARGET FILE\n' "${failed[*]}" "$build" "$host"
  exit 1
fi
