#!/usr/bin/env bash
# Builds the Debian package from a release build, and prints its path. Needs cargo-deb: on PATH, in target/tools/cargo, or
#     cargo install --locked cargo-deb --root target/tools/cargo
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH=$PATH:$PWD/target/tools/cargo/bin
command -v cargo-deb >/dev/null || {
  printf 'cargo-deb is missing: cargo install --locked cargo-deb --root target/tools/cargo\n' >&2
  exit 1
}
# All files bear the time of the commit: the same commit gives the same package.
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null) || SOURCE_DATE_EPOCH=0
  export SOURCE_DATE_EPOCH
fi

binary=$(deploy/release.sh)
# cargo-deb looks for what is named target/release there.
target=${binary%/release/*}

# Where the asset list of Cargo.toml looks for them.
generated=$PWD/target/package
rm -rf "$generated"
mkdir -p "$generated/completions"
"$binary" generate man "$generated/man"
for shell in bash zsh fish; do
  "$binary" generate completions "$shell" >"$generated/completions/$shell"
done

packages=$PWD/target/debian
mkdir -p "$packages"
CARGO_TARGET_DIR=$target cargo deb --no-build --locked --quiet --output "$packages/" | tail -1
