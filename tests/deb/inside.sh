#!/usr/bin/env bash
# Within the throw-away system, under its systemd: installs the package, configures it, and uses it as people do.
set -euo pipefail
cd /opt/deb
unit=surveylab-gateway.service
state=/var/lib/surveylab-gateway
program=/usr/bin/surveylab-gateway

step() { printf '\n--- %s\n' "$*"; }
fail() {
  printf 'FAILED: %s\n' "$*"
  journalctl --no-pager --lines 60 --unit "$unit" || true
  exit 1
}
# is WHAT EXPECTED: a property of the unit.
is() {
  local value
  value=$(systemctl show --property "$1" --value "$unit")
  [ "$value" = "$2" ] || fail "$1 is '$value', not '$2'"
  printf '%s=%s\n' "$1" "$value"
}
until_is() {
  for _ in $(seq 300); do
    [ "$(systemctl show --property "$1" --value "$unit")" = "$2" ] && return
    sleep 0.1
  done
  is "$1" "$2"
}

step "systemd"
systemctl --version | head -1

step "a fresh installation"
DEBIAN_FRONTEND=noninteractive dpkg --install package.deb
"$program" --version
is ActiveState inactive
[ "$(systemctl is-enabled "$unit" || true)" = disabled ] || fail "the unit is enabled before it is configured"
stat -c '%A %U:%G %n' /etc/surveylab-gateway /etc/default/surveylab-gateway
for file in /usr/share/man/man1/surveylab-gateway-serve.1.gz /usr/share/bash-completion/completions/surveylab-gateway; do
  dpkg --listfiles surveylab-gateway | grep -x "$file" || fail "the package has no $file"
done

step "without a token it does not start, once"
systemctl start "$unit" && fail "it started without a token"
is Result exit-code
is ExecMainStatus 2
is NRestarts 0
journalctl --no-pager --output cat --unit "$unit" | grep -F 'api-token-file' || fail "it does not say why"
systemctl reset-failed "$unit"

step "with a token it starts, as its own user"
install -m 600 /dev/null /etc/surveylab-gateway/api-token
printf 't0ken-c4nary-5ecret\n' >/etc/surveylab-gateway/api-token
systemctl start "$unit"
is ActiveState active
journalctl --no-pager --output cat --unit "$unit" | grep -F '"listening"' || fail "it does not listen"
! journalctl --no-pager --unit "$unit" | grep -F 't0ken-c4nary' || fail "the token is in the journal"
systemctl stop "$unit"
is Result success

step "the sandbox, under the unit's restrictions"
sed -i 's/^#GATEWAY_SANDBOX=true/GATEWAY_SANDBOX=true/' /etc/default/surveylab-gateway
systemctl start "$unit"
is ActiveState active
pid=$(systemctl show --property MainPID --value "$unit")
python3 restrictions.py "$pid" "$unit"
"$program" healthcheck
"$program" add --collector 8379821739721 --email anna@example.com --crk ticket-1
"$program" add --collector 8379821739721 --email anna@example.com --crk ticket-1
python3 - <<'END'
from urllib.request import urlopen
for path in ("healthz", "readyz"):
    print(path, urlopen(f"http://127.0.0.1:9464/{path}").status)
metrics = urlopen("http://127.0.0.1:9464/metrics").read().decode()
print(len(metrics.splitlines()), "lines of metrics")
for name in ("process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"):
    line = next((line for line in metrics.splitlines() if line.startswith(name + " ")), None)
    print(line or f"{name}: not there")
END

step "a kill is followed by a restart over the same ledger"
kill -KILL "$pid"
until_is NRestarts 1
until_is ActiveState active
"$program" invitations get --collector 8379821739721 --crk ticket-1 || fail "the key was lost"
pid=$(systemctl show --property MainPID --value "$unit")

step "SIGTERM drains and ends it"
systemctl stop "$unit"
is Result success
is ExecMainStatus 0
journalctl --no-pager --output cat --unit "$unit" | grep -F '"stopped"' || fail "it did not end by itself"
ls -l "$state"
[ "$(stat -c '%U %a' "$state")" = "surveylab-gateway 700" ] || fail "the state directory is open to others"
[ -s "$state/surveylab-gateway-sandbox.db" ] || fail "the ledger is not in the state directory"
[ "$(stat -c '%U %a' "$state/surveylab-gateway-sandbox.db")" = "surveylab-gateway 600" ] || fail "the ledger is open to others"
"$program" ledger check --ledger "sqlite:$state/surveylab-gateway-sandbox.db"

step "an upgrade restarts it where it runs, and keeps the settings"
systemctl start "$unit"
before=$(systemctl show --property MainPID --value "$unit")
dpkg --install package.deb
is ActiveState active
[ "$(systemctl show --property MainPID --value "$unit")" != "$before" ] || fail "the old one still runs"
grep '^GATEWAY_SANDBOX=true' /etc/default/surveylab-gateway

step "removal and purge stop it, and keep the ledger"
dpkg --remove surveylab-gateway
until_is ActiveState inactive
dpkg --purge surveylab-gateway
[ ! -e /etc/default/surveylab-gateway ] || fail "a purge leaves settings"
[ -s "$state/surveylab-gateway-sandbox.db" ] || fail "the purge took the ledger"
ls /etc/surveylab-gateway "$state"

printf '\nthe package installs, runs under its unit, and goes\n'
