#!/usr/bin/env bash
# Builds the release twice, in two directories and from nothing, and compares the binaries byte by byte. Takes as long as
# two release builds.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/target/reproducible
rm -rf "$work"
trap 'rm -rf "$work"' EXIT

# A copy has no repository, so both are told what they are.
GATEWAY_COMMIT=$(git rev-parse --short=12 HEAD)
GATEWAY_COMMIT_DATE=$(git show --no-patch --format=%cs HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export GATEWAY_COMMIT GATEWAY_COMMIT_DATE SOURCE_DATE_EPOCH
unset CARGO_TARGET_DIR

for directory in one another/and-deeper; do
  mkdir -p "$work/$directory"
  # As it is here, committed or not.
  git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- | tar --extract --directory "$work/$directory"
  "$work/$directory/deploy/release.sh"
done

one=$work/one/target/shipped/release/surveylab-gateway
other=$work/another/and-deeper/target/shipped/release/surveylab-gateway
sha256sum "$one" "$other"
stat --format '%s bytes' "$one"
if cmp "$one" "$other"; then
  printf 'both builds are the same\n'
else
  printf 'the builds differ\n' >&2
  # What a directory's name has got into.
  grep --text --only-matching --max-count=20 "$work/[[:print:]]*" "$one" >&2 || true
  exit 1
fi
