#!/usr/bin/env bash
# Builds the Debian package, installs it with dpkg, and runs the gateway under its unit: a systemd of its own, in
# namespaces and over a throw-away copy of this system's files, so that nothing here is changed. That systemd applies the
# unit's restrictions itself; which the kernel can't give is read back from the running process.
#
#     deb.sh [PACKAGE]
#
# Needs root, overlayfs and systemd's files. Exit code 77: it can't run here, and why.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
  printf 'SKIPPED: %s\n' "$*"
  exit 77
}
[ "$(id -u)" -eq 0 ] || skip "it needs root, for namespaces and overlayfs"
[ -x /lib/systemd/systemd ] && command -v dpkg >/dev/null || skip "it needs dpkg and systemd's files"
unshare --mount --pid --fork --net --ipc --uts --cgroup true 2>/dev/null || skip "namespaces can't be had"
grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || skip "the kernel has no overlayfs"
python3 -c pass 2>/dev/null || skip "it needs python3"

package=${1:-$(deploy/debian/build.sh)}
printf 'package: %s, %s bytes\n' "${package##*/}" "$(stat -c %s "$package")"
dpkg-deb --info "$package" | sed -n '/^ Package/,$p'
if command -v lintian >/dev/null; then
  lintian --fail-on error "$package"
else
  printf 'lintian is not there: not run\n'
fi

# On a file system of its own, which the namespace takes with it; only what is printed comes out.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
touch "$work/output"
code=0
timeout --signal=KILL 300 unshare --mount --pid --fork --net --ipc --uts --cgroup --kill-child \
  tests/deb/boot.sh "$work/root" "$(readlink -f "$package")" "$PWD/tests/deb" "$work/output" </dev/null || code=$?
cat "$work/output"
if ! grep -q '^the package installs, runs under its unit, and goes$' "$work/output"; then
  printf 'deb.sh: it did not come to its end (systemd ended with %s)\n' "$code" >&2
  exit 1
fi
