"""Holds the deployment files to the program and to each other.

    deployment.py path/to/surveylab-gateway

Every setting they name is one of `serve` or of a command, every path is mounted, every selector finds its pods, and who
waits for the drain waits for longer than it takes.
"""

import pathlib
import re
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
# For builds, not for the program.
BUILD = {"GATEWAY_COMMIT", "GATEWAY_COMMIT_DATE"}
# Not shown by --help: never a flag, or another program's.
OTHER = {"SURVEYLAB_API_TOKEN", "PGPASSWORD", "PGPASSFILE", "RUST_LOG"}
SETTING = re.compile(r"\b(?:GATEWAY|SURVEYLAB)_[A-Z][A-Z_]*[A-Z]\b")
SPAN = {"s": 1, "m": 60}

wrong = []


def expect(right, what):
    if not right:
        wrong.append(what)


def settings(binary):
    """All environment variables that the program's help names."""
    texts = [subprocess.run([binary, command, "--help"], check=True, capture_output=True, text=True, env={}).stdout
             for command in ("serve", "healthcheck")]
    return set(re.findall(r"\[env:\s+([A-Z_]+)", "".join(texts)))


def default_drain(binary):
    text = subprocess.run([binary, "serve", "--help"], check=True, capture_output=True, text=True, env={}).stdout
    return seconds(re.search(r"--drain-timeout.*?\[default: (\w+)\]", text, re.S)[1])


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)([sm])", text).groups()
    return int(number) * SPAN[unit]


def documents():
    for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            yield path.relative_to(ROOT), document


def check_kustomizations():
    for path, document in documents():
        if path.name != "kustomization.yaml":
            continue
        folder = ROOT / path.parent
        listed = {entry for entry in document["resources"] if not entry.startswith("..")}
        there = {file.name for file in folder.glob("*.yaml")} - {"kustomization.yaml"}
        expect(listed == there, f"{path} lists {sorted(listed)}, there is {sorted(there)}")
        for entry in document["resources"]:
            expect((folder / entry).exists(), f"{path}: there is no {entry}")


def check_pods(known):
    pods = [(path, document) for path, document in documents() if document["kind"] in ("Deployment", "StatefulSet")]
    expect(len(pods) == 2, "there are a Deployment and a StatefulSet")
    services = {document["metadata"]["name"]: document for _, document in documents() if document["kind"] == "Service"}
    for path, document in pods:
        template = document["spec"]["template"]
        labels, spec = template["metadata"]["labels"].items(), template["spec"]
        [container] = spec["containers"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        for name in env:
            expect(name in known | OTHER, f"{path}: {name} is no setting")
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        claims = {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in spec["volumes"]} | claims
        expect(set(mounts) == volumes, f"{path}: mounted are {sorted(mounts)}, there are {sorted(volumes)}")
        for name, value in env.items():
            for used in re.findall(r"(?<![\w/.])/(?:run|var|etc)/[\w./-]+", value or ""):
                expect(any(used.startswith(place + "/") for place in mounts.values()), f"{path}: {name}: {used} is not mounted")
        drain = seconds(env["GATEWAY_DRAIN_TIMEOUT"]) + container["lifecycle"]["preStop"]["sleep"]["seconds"]
        expect(spec["terminationGracePeriodSeconds"] >= drain + 5, f"{path}: it is killed before it has drained")
        expect(document["spec"]["selector"]["matchLabels"].items() <= labels, f"{path}: its selector misses its pods")
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for setting, port in (("GATEWAY_LISTEN", "grpc"), ("GATEWAY_ADMIN_LISTEN", "admin")):
            expect(env[setting].endswith(f":{ports[port]}"), f"{path}: {setting} is not the port {port}")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            expect(container[probe]["httpGet"]["port"] in ports, f"{path}: {probe} asks a port that is not there")
        for name, service in services.items():
            expect(service["spec"]["selector"].items() <= labels, f"the service {name} misses the pods of {path}")
            for port in service["spec"]["ports"]:
                expect(port["targetPort"] in ports, f"the service {name} names a port that {path} has not")
        hardened = container["securityContext"]
        expect(hardened["readOnlyRootFilesystem"] and hardened["capabilities"]["drop"] == ["ALL"]
               and not hardened["allowPrivilegeEscalation"] and spec["securityContext"]["runAsNonRoot"],
               f"{path}: it is less restricted than it can be")


def check_names(known):
    """Each setting that any of these files names."""
    # What watches the gateway names reasons of errors, which look alike, and no settings.
    watch = {DEPLOY / "prometheus", DEPLOY / "grafana"}
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and not watch & set(path.parents)]
    files.append(ROOT / "docs/deploy.md")
    found = 0
    for path in files:
        for name in set(SETTING.findall(path.read_text("utf-8"))):
            found += 1
            expect(name in known | BUILD | OTHER, f"{path.relative_to(ROOT)}: {name} is no setting")
    return found


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    binary = sys.argv[1]
    known = settings(binary)
    check_kustomizations()
    check_pods(known)
    found = check_names(known)
    unit = (DEPLOY / "systemd/surveylab-gateway.service").read_text("utf-8")
    stop = seconds(re.search(r"^TimeoutStopSec=(\w+)$", unit, re.M)[1])
    expect(stop >= default_drain(binary) + 5, "the unit is killed before it has drained")
    if wrong or found < 20:
        sys.exit("\n".join(["the deployment files are wrong:", *dict.fromkeys(wrong)]))
    print(f"the deployment files name settings at {found} places, and all of them are there")


if __name__ == "__main__":
    main()
