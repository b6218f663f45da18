#!/usr/bin/env bash
# Builds the release as it is shipped, and prints its path: the same binary from the same commit, in whichever directory
# and by whomever, with the same toolchain, C compiler and linker.
set -euo pipefail
cd "$(dirname "$0")/.."
# A directory of its own: other builds of a release have other flags, and each would undo the other's.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/shipped}
# The names of directories get into the binary by panics' places and the log's. These are the same everywhere.
RUSTFLAGS="--remap-path-prefix=$PWD=/build --remap-path-prefix=$CARGO_TARGET_DIR=/build/target"
RUSTFLAGS+=" --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
export RUSTFLAGS
export CFLAGS="-ffile-prefix-map=$PWD=/build -ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=/cargo ${CFLAGS:-}"
cargo build --release --locked --quiet --bin surveylab-gateway >&2
printf '%s\n' "$CARGO_TARGET_DIR/release/surveylab-gateway"
