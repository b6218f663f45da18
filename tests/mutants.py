#!/usr/bin/env python3
"""The test of the tests: plants a bug into a copy of the source, one at a time, and sees that the checkers find it.

Usage: tests/mutants.py [NAME...]      (all, where none is named)
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
MUTANTS = TARGET / "mutants"
SOURCE = MUTANTS / "source"


@dataclass
class Mutant:
    name: str
    # What is replaced by what, by file. It must be there exactly once, so that a mutant can't silently become none.
    edits: list[tuple[str, str, str]]
    test: str
    # What the checker says of it, one of these.
    finds: str


KILLS = "kills::no_kill_loses_or_repeats_anything"
POWER = "power::claims_are_durable_before_requests_and_outcomes_before_answers"
FLIGHT = "src/dispatch/flight.rs"

ALL = [
    Mutant(
        "claim-after-send",
        [
            (
                FLIGHT,
                "        } = match self.claim(doubt, attempts.elsewhere.as_ref()).await {",
                "        } = match {\n"
                "            early = self.core.surveylab.send(&self.request).await;\n"
                "            self.claim(doubt, attempts.elsewhere.as_ref()).await\n"
                "        } {",
            ),
            (
                FLIGHT,
                "        fail_point::reached(Place::BeforeClaim);",
                "        fail_point::reached(Place::BeforeClaim);\n        let early;",
            ),
            (FLIGHT, "let answer = self.core.surveylab.send(&self.request).await;", "let answer = early;"),
        ],
        KILLS,
        "took effect twice|was sent again|may have taken effect",
    ),
    Mutant(
        "answer-before-settle",
        [
            (
                FLIGHT,
                "        if let Recorded::Late = self.end(End::Settle(settlement, at), attempts.sent).await {",
                "        if let Verdict::Added { notification } = &verdict {\n"
                "            let notification = notification.clone();\n"
                "            let added = Added { at, notification, attempts: count };\n"
                "            self.landing.announce(Ok(Outcome::Added(added)));\n"
                # Its own task could otherwise be the one that settles first.
                "            tokio::time::sleep(std::time::Duration::from_millis(2)).await;\n"
                "        }\n"
                "        if let Recorded::Late = self.end(End::Settle(settlement, at), attempts.sent).await {",
            )
        ],
        KILLS,
        "was answered differently later|it was acknowledged",
    ),
    Mutant(
        "no-join",
        [
            (
                "src/dispatch/in_flight.rs",
                "        match flights.entry(invitation.key.clone()) {",
                "        flights.remove(&invitation.key);\n        match flights.entry(invitation.key.clone()) {",
            )
        ],
        KILLS,
        "was answered differently later|was added by",
    ),
    Mutant(
        "lost-answer-is-a-failure",
        [
            (
                "src/dispatch/verdict.rs",
                "            Answer::InDoubt { http_status, .. } => in_doubt(http_status),",
                "            Answer::InDoubt { .. } => not_processed(Reason::SurveylabUnavailable, 503, None),",
            )
        ],
        KILLS,
        "took effect twice|was sent again",
    ),
    Mutant(
        "recovery-frees-keys",
        [
            (
                "src/ledger/rules.rs",
                "pub(super) const ORPHANED: Settlement = Settlement::InDoubt {\n    error: LastError {\n"
                "        reason: Reason::OutcomeInDoubt,\n        http_status: None,\n    },\n};",
                "pub(super) const ORPHANED: Settlement = Settlement::Failed {\n    error: LastError {\n"
                "        reason: Reason::OutcomeInDoubt,\n        http_status: None,\n    },\n    notification: None,\n};",
            )
        ],
        KILLS,
        "took effect twice|was sent again|may have taken effect",
    ),
    Mutant(
        "no-sync",
        [("src/ledger/sqlite/file.rs", "PRAGMA synchronous = FULL;", "PRAGMA synchronous = OFF;")],
        POWER,
        "without a durable claim",
    ),
    Mutant(
        "sync-at-checkpoints",
        [("src/ledger/sqlite/file.rs", "PRAGMA synchronous = FULL;", "PRAGMA synchronous = NORMAL;")],
        POWER,
        "without a durable claim",
    ),
]


def plant(mutant: Mutant) -> None:
    shutil.rmtree(SOURCE / "src", ignore_errors=True)
    for name in ("src", "proto"):
        # With their dates, so that what no mutant touches is not built again.
        shutil.copytree(ROOT / name, SOURCE / name, dirs_exist_ok=True)
    for name in ("build.rs", "Cargo.lock", "README.md"):
        shutil.copy2(ROOT / name, SOURCE / name)
    manifest = (ROOT / "Cargo.toml").read_text()
    # Only the binary is built; and this package belongs to none above it.
    manifest = re.sub(r"^\[\[(test|bench)\]\]\n(?:[^\[\n].*\n|\n)*|^\[workspace\]\n(?:[^\[\n].*\n|\n)*", "", manifest, flags=re.M)
    (SOURCE / "Cargo.toml").write_text(manifest + "\n[workspace]\n")
    for file, old, new in mutant.edits:
        path = SOURCE / file
        text = path.read_text()
        if text.count(old) != 1:
            sys.exit(f"{mutant.name}: {file} holds what is to be replaced {text.count(old)} times; mend {__file__}")
        path.write_text(text.replace(old, new))


def build() -> Path:
    target = MUTANTS / "target"
    if not target.exists():
        # The dependencies are the same, and need not be built again.
        own = shutil.ignore_patterns("*surveylab*", "it-*")
        for name in ("deps", "build", ".fingerprint"):
            if (TARGET / "debug" / name).exists():
                shutil.copytree(TARGET / "debug" / name, target / "debug" / name, ignore=own)
    command = ["cargo", "build", "--locked", "--quiet", "--bin", "surveylab-gateway", "--target-dir", target]
    # What is planted may leave something unused behind.
    run = subprocess.run([*command, "--manifest-path", SOURCE / "Cargo.toml"], text=True, stderr=subprocess.PIPE)
    if run.returncode != 0:
        sys.exit(run.stderr)
    return target / "debug" / "surveylab-gateway"


def check(mutant: Mutant, binary: Path) -> bool:
    command = ["cargo", "test", "--locked", "--quiet", "--test", "it", "--", "--exact", mutant.test, "--nocapture"]
    environment = {**os.environ, "GATEWAY_UNDER_TEST": str(binary), "KILLS": "60", "RUST_BACKTRACE": "0"}
    run = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    found = re.search(f".*({mutant.finds}).*", run.stdout)
    seed = re.search(r"SEED=\d+", run.stdout)
    if run.returncode != 0 and found:
        print(f"{mutant.name}: found ({seed[0] if seed else mutant.test}): {found[0].strip()[:200]}", flush=True)
        return True
    print(f"{mutant.name}: NOT FOUND\n{run.stdout}", flush=True)
    return False


def main() -> None:
    names = sys.argv[1:]
    mutants = [mutant for mutant in ALL if not names or mutant.name in names]
    unknown = set(names) - {mutant.name for mutant in mutants}
    if unknown:
        sys.exit(f"no mutant is named {', '.join(sorted(unknown))}")
    missed = []
    for mutant in mutants:
        plant(mutant)
        if not check(mutant, build()):
            missed.append(mutant.name)
    if missed:
        sys.exit(f"planted and not found: {', '.join(missed)}")
    print(f"{len(mutants)} bugs planted, {len(mutants)} found")


if __name__ == "__main__":
    main()
