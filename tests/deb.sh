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

# On a file system of its own, which the namespace takes with it.
scratch=$(mktemp -d)
trap 'rmdir "$scratch"' EXIT
cp_package=$(readlink -f "$package")
unshare --mount --pid --fork --net --ipc --uts --cgroup --kill-child \
  tests/deb/boot.sh "$scratch" "$cp_package" "$PWD/tests/deb" </dev/null
