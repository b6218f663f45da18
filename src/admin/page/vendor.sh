#!/usr/bin/env bash
# Renews what the status page takes from others: uPlot, which draws its charts. VERSION is one of npm's.
#
#   src/admin/page/vendor.sh [VERSION]
#
# build.rs refuses files that are not the ones whose SHA-256 it names; this writes the new ones there.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)

version=${1:-1.6.32}
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

# npm checks what it downloads against the registry's SHA-512.
(cd "$directory" && npm pack --silent "uplot@$version" >/dev/null && tar -xzf "uplot-$version.tgz")
mkdir -p vendor
cp "$directory/package/dist/uPlot.iife.min.js" "$directory/package/dist/uPlot.min.css" vendor/
cp "$directory/package/LICENSE" vendor/uPlot.LICENSE
chmod 644 vendor/*

sed -i "s/^version=.*/version=\${1:-$version}/" vendor.sh
for file in uPlot.iife.min.js uPlot.min.css uPlot.LICENSE; do
  sum=$(sha256sum "vendor/$file" | cut -d ' ' -f 1)
  sed -i "/\"$file\",/{n;s/\"[0-9a-f]*\"/\"$sum\"/}" "$root/build.rs"
  printf '%s  %s\n' "$sum" "$file"
done
printf 'uPlot %s\n' "$version"
