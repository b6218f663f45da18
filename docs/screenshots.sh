#!/usr/bin/env bash
# Makes the pictures of docs/page.md: some minutes of a gateway's life in front of its sandbox, in headless Chromium.
#
#   docs/screenshots.sh BINARY
#
# MINUTES says how many; 7 unless set.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:?usage: docs/screenshots.sh BINARY}
# Makes the pictures small: a few dozen colours are all there are, the rest is the smoothing of letters.
export PICTURE_TOOLS=$PWD/target/tools/pictures
mkdir -p "$PICTURE_TOOLS"
npm install --prefix "$PICTURE_TOOLS" --no-save --no-audit --no-fund --ignore-scripts --loglevel=error sharp@0.35.5
tests/page.sh "$binary" docs/screenshots.mjs
ls -l "${OUT:-docs}"/page-*.png
