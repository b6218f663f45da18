#!/usr/bin/env bash
# Within new namespaces: makes the throw-away system, and becomes its systemd, which runs tests/deb/inside.sh.
set -euo pipefail
scratch=$1 package=$2 tests=$3 output=$4

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$scratch"
mkdir "$scratch"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
cd "$scratch/root"
mount -t proc proc proc
# It shares the kernel with this machine, and must not set it.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
  touch "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ip link set lo up

mkdir -p opt/deb
cp "$package" opt/deb/package.deb
cp "$tests"/inside.sh "$tests"/restrictions.py opt/deb/
touch opt/deb/output
mount --bind "$output" opt/deb/output
# Images for containers keep packages from starting anything, by this.
rm -f usr/sbin/policy-rc.d
# Other services of this machine have no business here.
find etc/systemd/system -mindepth 1 -delete
for unit in systemd-sysctl systemd-udevd systemd-udev-trigger systemd-modules-load systemd-timesyncd systemd-logind \
  systemd-networkd systemd-random-seed systemd-remount-fs; do
  ln -s /dev/null "etc/systemd/system/$unit.service"
done
for unit in systemd-udevd-control systemd-udevd-kernel avahi-daemon; do
  ln -s /dev/null "etc/systemd/system/$unit.socket"
done
cat >etc/systemd/system/inside.service <<'END'
[Unit]
Wants=dbus.socket
After=basic.target dbus.socket
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/bash /opt/deb/inside.sh
StandardOutput=append:/opt/deb/output
StandardError=inherit
TimeoutStartSec=4min
END
printf '[Unit]\nRequires=basic.target\nWants=inside.service\n' >etc/systemd/system/inside.target

mkdir old
pivot_root . old
umount --lazy /old
# As systemd expects to find it: credentials reach a unit's own mounts by way of this.
mount --make-rshared /
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  setpriv --bounding-set=-sys_module,-sys_time,-sys_boot,-sys_rawio,-syslog,-audit_control,-wake_alarm \
  /lib/systemd/systemd --system --unit=inside.target --log-target=journal --show-status=no
