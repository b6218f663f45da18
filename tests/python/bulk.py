"""Runs a resuming client against gateways that come and go, and counts what SurveyLab got.

    bulk.py path/to/surveylab-gateway [CLIENT...]

CLIENT is the command of a client that takes the arguments of examples/bulk/python/bulk.py; that one, where none is
named. Gateways are killed and drained, clients are killed; SEED repeats a printed seed's choices. Exits with 1 at the
first thing that is not as documented.
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile

import grpc

import checks
from checks import check
from gateway import COLLECTOR, PATIENCE, ROOT, Gateway, Sandbox, generate_stubs

PROGRAMS = {"python": "python/bulk.py", "go": "go/main.go", "ts": "typescript/bulk.ts"}
ROWS = 500
MAX_IN_FLIGHT = 8
# What happens, each after so many rows more were added that all is over before the list is.
EVENTS = ["a gateway is killed"] * 5 + ["a gateway is drained"] * 3 + ["a client is killed"] * 3
ROWS_BETWEEN_EVENTS = (5, 35)
# What SurveyLab asks for with a 503, and the gateway in RetryInfo. Longer than a client waits of itself.
LATER = 3


def docs_show_the_programs():
    page = (ROOT / "docs/bulk.md").read_text("utf-8")
    for language, path in PROGRAMS.items():
        program = (ROOT / "examples/bulk" / path).read_text("utf-8")
        core = re.search(r"^(?:#|//) \[core\]\n+(.*?\n)\n*^(?:#|//) \[/core\]$", program, re.M | re.S)
        shown = re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)
        check(f"docs/bulk.md shows the core of {path}", shown, [core[1]])


def free_port():
    """One that no outgoing connection takes while its gateway is away: below those that the system hands out."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def respondent(number, **fields):
    return {"collectorId": COLLECTOR, "crk": f"ticket-{number}", "email": f"person{number}@example.com", **fields}


class Job:
    """A list, its results, and the client that works on it."""

    def __init__(self, command, directory, name, requests, address, *flags):
        self.rows, self.path = directory / f"{name}.rows", directory / f"{name}.results"
        self.rows.write_text("".join(json.dumps(request) + "\n" for request in requests), "utf-8")
        self.command = [*command, f"--target={address}", *flags, str(self.rows), str(self.path)]
        self.said = directory / f"{name}.said"

    def start(self):
        with open(self.said, "a") as said:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=PATIENCE)

    def wait(self):
        try:
            return self.process.wait(timeout=4 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            sys.exit(f"FAILED  the client did not end\n{self.said.read_text('utf-8')}")

    def run(self, what, code):
        self.start()
        self.ends(what, code)

    def ends(self, what, code):
        ended = self.wait()
        # What it said tells why.
        check(what, (ended, "" if ended == code else self.said.read_text("utf-8")), (code, ""))

    def end(self, failed, *_):
        """Whatever became of the test. What the client said may tell why it failed."""
        self.kill()
        if failed:
            print(self.said.read_text("utf-8"), flush=True)

    def results(self):
        """The outcomes by row."""
        lines = [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]
        told = collections.Counter(result["row"] for result in lines)
        check("no row has two results", [row for row, count in told.items() if count > 1], [])
        written = self.path.read_text("utf-8") + self.said.read_text("utf-8")
        check("and none tells an address", [word for word in ("example.com", "nobody") if word in written], [])
        return {result["row"]: (result["outcome"], result.get("reason", "")) for result in lines}

    def tear_last_result(self):
        """As a kill within a write leaves it."""
        os.truncate(self.path, max(0, self.path.stat().st_size - random.randint(1, 20)))


def in_doubt(address):
    """The keys in doubt, as the ledger knows them."""
    from surveylab.invitation.v1 import invitation_pb2 as pb
    from surveylab.invitation.v1 import invitation_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        request = pb.ListInvitationsRequest(state=pb.INVITATION_STATE_IN_DOUBT, page_size=1000)
        page = invitation_pb2_grpc.InvitationServiceStub(channel).ListInvitations(request, timeout=PATIENCE)
    return {invitation.crk for invitation in page.invitations}


def everything_goes_wrong(binary, client, directory, stack):
    # The sandbox stays, and sends every repeated request's e-mail: one too many would show.
    sandbox = Sandbox(
        binary, "--latency=20ms", "--on-repeat=send-again", "--fault=reset_before_answer,crk=ticket-lost",
        "--fault=status=400,crk=ticket-refused", "--fault=status=503,crk=ticket-busy,times=4",
    )
    stack.callback(sandbox.kill)
    address = f"127.0.0.1:{free_port()}"

    def gateway():
        started = Gateway(
            binary, directory, "--rate=300/s", "--burst=20", "--max-attempts=1", "--stream-window=32",
            f"--max-in-flight={MAX_IN_FLIGHT}", surveylab=sandbox.surveylab, listen=address,
            RUST_LOG="info,surveylab_gateway::dispatch=debug",
        )
        stack.callback(started.kill)
        return started

    requests = [respondent(number) for number in range(ROWS)]
    special = [
        respondent("bad", email="nobody"), respondent("refused"), respondent("lost"), respondent("busy"),
        # The same person once more.
        respondent(0),
    ]
    # Not at the end: all of it happens to them, too.
    for request in special:
        requests.insert(random.randrange(1, ROWS // 2), request)
    crks = {row: request["crk"] for row, request in enumerate(requests, start=1)}

    job = Job(client, directory, "list", requests, address, "--tries=5")
    running, doubts = gateway(), set()
    job.start()
    stack.push(job.end)
    events = random.sample(EVENTS, len(EVENTS))
    for event in events:
        running.wait_for("added", random.randint(*ROWS_BETWEEN_EVENTS))
        if event == "a client is killed":
            job.kill()
            job.tear_last_result()
            job.start()
        elif event == "a gateway is drained":
            code, _ = running.stop()
            running = gateway()
            check(f"{event}, ends with 0", code, 0)
            check("and leaves nothing in doubt", in_doubt(address) - doubts <= {"ticket-lost"}, True)
        else:
            running.kill()
            running = gateway()
            new = in_doubt(address) - doubts - {"ticket-lost"}
            check(f"{event}: what was on the wire is in doubt, and no more", len(new) <= MAX_IN_FLIGHT, True)
            doubts |= new
    job.ends("the exit code says that some are in doubt", 4)
    doubts |= {"ticket-lost"}

    results = job.results()
    check("each row has a result", sorted(results), sorted(crks))
    by_crk = collections.defaultdict(set)
    for row, (outcome, reason) in results.items():
        by_crk[crks[row]].add((outcome, reason))
    check("the bad one is refused", by_crk.pop("ticket-bad"), {("FAILED", "INVALID_REQUEST")})
    refused = by_crk.pop("ticket-refused")
    if "ticket-refused" not in doubts:
        check("so is what SurveyLab refused", refused, {("FAILED", "SURVEYLAB_BAD_REQUEST")})
    else:
        check("what SurveyLab refused during a kill is in doubt", refused, {("IN_DOUBT", "OUTCOME_IN_DOUBT")})
    unclear = {crk for crk, outcomes in by_crk.items() if outcomes == {("IN_DOUBT", "OUTCOME_IN_DOUBT")}}
    check("those in doubt are the ledger's", in_doubt(address), doubts)
    check("and the results say so", unclear, doubts - {"ticket-refused"})
    done = {("ADDED", ""), ("DUPLICATE", "")}
    others = {crk: outcomes for crk, outcomes in by_crk.items() if crk not in unclear}
    check("all others were added", [crk for crk, outcomes in others.items() if not outcomes <= done], [])

    received = {key["crk"]: key for key in sandbox.report()["by_key"]}
    repeated = {crk for crk, key in received.items() if key["requests"] > 1}
    # These keys are free, as SurveyLab did not process them: where the answer got lost the row is sent again.
    unprocessed = {"ticket-busy", "ticket-refused"}
    check("SurveyLab got each key once, but for those it did not process", repeated - unprocessed, set())
    check("and sent nothing twice", [crk for crk, key in received.items() if key["effects"] > 1], [])
    unsent = [crk for crk in others if received.get(crk, {}).get("effects") != 1]
    check("what counts as added had its e-mail", unsent, [])
    print(f"        {len(doubts)} of {len(crks)} in doubt after: {', '.join(events)}")

    before = sandbox.report()["requests"]
    job.run("run again, it has nothing to do", 4)
    check("and asks for nothing", sandbox.report()["requests"], before)


def exit_codes(binary, client, directory, stack):
    sandbox = Sandbox(binary, "--on-repeat=send-again", f"--fault=status=503,retry_after={LATER},crk=ticket-2,times=1")
    stack.callback(sandbox.kill)
    address = f"127.0.0.1:{free_port()}"
    rows = [respondent(number) for number in range(5)]
    Job(client, directory, "good", rows, address, "--tries=2").run("without a gateway it gives up for now", 1)
    gateway = Gateway(binary, directory, "--max-attempts=1", surveylab=sandbox.surveylab, listen=address)
    stack.callback(gateway.kill)
    job = Job(client, directory, "good", rows, address)
    job.run("run again, it succeeds", 0)
    check("all are added", job.results(), dict.fromkeys(range(1, 6), ("ADDED", "")))
    arrivals = sandbox.arrivals("ticket-2")
    check("what is not processed is tried again", len(arrivals), 2)
    check("not before it makes sense", arrivals[1] - arrivals[0] >= LATER, True)

    refused = Job(client, directory, "refused", [respondent(8), respondent(0, email="other@example.com")], address)
    refused.run("a key with other data is a failure", 3)
    check("and the row before is not", refused.results(), {1: ("ADDED", ""), 2: ("FAILED", "CRK_REUSED")})

    no_row = {"crk": "ticket-10", "mail": "anna@example.com"}
    broken = Job(client, directory, "broken", [respondent(9), no_row], address)
    before = sandbox.report()["requests"]
    broken.run("a list with a row that is none is refused", 2)
    check("before anything is sent", sandbox.report()["requests"], before)
    check("without a word of it", "anna" in broken.said.read_text("utf-8"), False)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    binary, client = sys.argv[1], sys.argv[2:] or [sys.executable, str(ROOT / "examples/bulk" / PROGRAMS["python"])]
    seed = os.environ.get("SEED") or str(random.randrange(2**64))
    print(f"SEED={seed}", flush=True)
    random.seed(seed)
    docs_show_the_programs()
    with tempfile.TemporaryDirectory() as stubs:
        generate_stubs(stubs)
        os.environ["PYTHONPATH"] = stubs
        for scenario in exit_codes, everything_goes_wrong:
            with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
                scenario(binary, client, pathlib.Path(directory), stack)
    print(f"bulk client: {checks.passed} passed")


if __name__ == "__main__":
    main()
