"""Reads back from a running process which of its unit's restrictions hold, and says which can't be seen.

    restrictions.py PID UNIT
"""

import os
import pathlib
import subprocess
import sys

pid, unit = sys.argv[1], sys.argv[2]
process = pathlib.Path("/proc") / pid
status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
wrong = []


def holds(what, right, seen):
    print(f"{'applied' if right else 'NOT APPLIED':12} {what:55} {seen}")
    if not right:
        wrong.append(what)


def mount_of(path):
    """The options of the mount that a path lies on, as the process sees it."""
    best = ("", "")
    for line in (process / "mountinfo").read_text().splitlines():
        place, options = line.split()[4:6]
        if (path + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best[0]):
            best = (place, options)
    return best


def is_read_only(path):
    return "ro" in mount_of(path)[1].split(",")


def open_files(of):
    """The hard limit."""
    lines = pathlib.Path(f"/proc/{of}/limits").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Max open files")).split()[4])


uids = set(status["Uid"].split())
holds("User=", "0" not in uids and len(uids) == 1, f"uid {uids}")
for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh"):
    holds(f"CapabilityBoundingSet= ({kind})", int(status[kind], 16) == 0, status[kind])
holds("NoNewPrivileges=", status["NoNewPrivs"] == "1", status["NoNewPrivs"])
filters = int(status.get("Seccomp_filters", "0"))
holds("SystemCallFilter= and the other seccomp filters", status["Seccomp"] == "2" and filters > 1, f"{filters} filters")
for path in ("/", "/usr", "/etc", "/var"):
    holds(f"ProtectSystem=strict ({path})", is_read_only(path), mount_of(path))
state = "/var/lib/surveylab-gateway"
holds("StateDirectory= can be written", not is_read_only(state), mount_of(state))
for path in ("/proc/sys", "/sys"):
    place = mount_of(path)
    hidden = not (process / "root" / path.lstrip("/")).exists()
    holds(f"ProtectKernelTunables= ({path})", hidden or is_read_only(path), "hidden" if hidden else place)
holds("ProtectControlGroups=", is_read_only("/sys/fs/cgroup"), mount_of("/sys/fs/cgroup"))
holds("ProtectHome=", not any((process / "root/root").iterdir()), mount_of("/root"))
for path in ("/tmp", "/var/tmp", "/dev"):
    holds(f"PrivateTmp=, PrivateDevices= ({path})", mount_of(path)[0] == path, mount_of(path))
proc = [line for line in (process / "mountinfo").read_text().splitlines() if line.split()[4] == "/proc"][-1]
holds("ProtectProc=invisible", "hidepid=invisible" in proc or "hidepid=2" in proc, proc.split(" - ")[1])
for kind in ("mnt", "user", "ipc", "uts"):
    own, ours = (os.readlink(f"/proc/{id}/ns/{kind}") for id in (pid, 1))
    holds(f"its own {kind} namespace", own != ours, own)
# Where this machine allows fewer, systemd gives what there is.
holds("LimitNOFILE=", open_files(pid) == min(65536, open_files(1)), f"{open_files(pid)}, this machine's bound is {open_files(1)}")
holds("UMask=", status["Umask"] == "0077", status["Umask"])
# The kernel has no file that tells which calls a filter refuses, so the same unit is made to try them.
show = subprocess.run(["systemctl", "cat", unit], capture_output=True, text=True, check=True).stdout
directives = [line for line in show.splitlines() if "=" in line and not line.startswith("#")]
keep = ("Private", "Protect", "Restrict", "System", "Capability", "Ambient", "NoNew", "Lock", "Memory", "Proc", "User",
        "Group", "Device", "RemoveIPC", "Keyring", "StateDirectory", "UMask")
properties = [f"--property={line}" for line in directives if line.startswith(keep) and line.split("=")[0] != "RestartPreventExitStatus"]
probe = """
import ctypes, mmap, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def tried(what, call):
    try:
        call()
        print(what, "ALLOWED", sep="|")
    except OSError as error:
        print(what, error.strerror, sep="|")
def checked(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
libc.mmap.restype = ctypes.c_void_p
tried("MemoryDenyWriteExecute=", lambda: checked(libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0))))
tried("RestrictNamespaces=", lambda: checked(libc.unshare(0x10000000)))
tried("RestrictAddressFamilies= (netlink)", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
tried("RestrictAddressFamilies= (packet)", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
tried("RestrictRealtime=", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
tried("RestrictSUIDSGID=", lambda: (open("/var/lib/surveylab-gateway/suid", "w").close(), os.chmod("/var/lib/surveylab-gateway/suid", 0o4755)))
tried("LockPersonality=", lambda: checked(libc.personality(0x0040000)))
tried("SystemCallFilter= (mount)", lambda: checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)))
tried("SystemCallFilter= (ptrace)", lambda: checked(libc.ptrace(0, 0, 0, 0)))
tried("SystemCallFilter= (chown)", lambda: os.chown("/var/lib/surveylab-gateway/suid", 0, 0))
tried("SystemCallFilter= (setpriority)", lambda: os.setpriority(os.PRIO_PROCESS, 0, 1))
tried("ProtectHostname=", lambda: socket.sethostname("x"))
tried("ProtectSystem=strict (a file in /etc)", lambda: open("/etc/x", "w"))
try:
    os.unlink("/var/lib/surveylab-gateway/suid")
except OSError:
    pass
"""
run = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", *properties, "python3", "-c", probe]
tried = subprocess.run(run, capture_output=True, text=True)
lines = [line.split("|") for line in tried.stdout.splitlines()]
for what, outcome in lines:
    holds(what, outcome != "ALLOWED", f"a python3 under the same properties: {outcome}")
if len(lines) < 13:
    holds("the probe under the same properties", False, tried.stderr.strip())
for what in ("SystemCallArchitectures=", "ProtectKernelModules=, ProtectKernelLogs=, ProtectClock=", "RemoveIPC=", "KeyringMode="):
    print(f"{'not tried':12} {what}")
sys.exit(f"not applied: {wrong}" if wrong else 0)
