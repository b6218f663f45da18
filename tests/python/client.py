"""Calls a gateway with Python's stock gRPC client, as an internal service would.

    client.py path/to/surveylab-gateway

Needs the packages of requirements.txt. The stubs are generated into a temporary directory. Exits with 1 at the first
answer that is not as documented.
"""

import contextlib
import json
import queue
import re
import sys
import tempfile

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

import checks
from checks import check
from gateway import COLLECTOR, PATIENCE, ROOT, SERVICE, Gateway, generate_stubs, http, put_faults


def service_config():
    """The retry policy that README recommends, as it stands there."""
    blocks = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    policies = [block for block in blocks if '"retryPolicy"' in block]
    check("README has one retry policy", len(policies), 1)
    return json.dumps(json.loads(policies[0]))


def emails(gateway, crk):
    return json.loads(http(f"{gateway.sandbox}/report?cId={COLLECTOR}&crk={crk}"))["effects"]


def failure(call):
    """The error of a call: its code and the details that came with it, by type."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error.code().name, details_of(rpc_status.from_call(error))
    sys.exit(f"FAILED  an error was expected, got {answer}")


def details_of(status):
    kinds = {
        "info": error_details_pb2.ErrorInfo,
        "retry": error_details_pb2.RetryInfo,
        "bad": error_details_pb2.BadRequest,
    }
    details = {}
    for packed in status.details if status else ():
        for name, kind in kinds.items():
            if packed.Is(kind.DESCRIPTOR):
                details[name] = kind()
                packed.Unpack(details[name])
    return details


def told(failed):
    """What a caller decides on: code, reason, domain, sent."""
    code, details = failed
    info = details["info"]
    return code, info.reason, info.domain, info.metadata["sent"]


def run(gateway, channel, retrying):
    from surveylab.invitation.v1 import invitation_pb2 as pb
    from surveylab.invitation.v1 import invitation_pb2_grpc

    stub = invitation_pb2_grpc.InvitationServiceStub(channel)
    patient = invitation_pb2_grpc.InvitationServiceStub(retrying)

    def request(crk, **fields):
        return pb.AddRespondentRequest(**{"collector_id": COLLECTOR, "email": "anna@example.com", "crk": crk, **fields})

    def add(crk, client=stub, timeout=PATIENCE, **fields):
        return client.AddRespondent(request(crk, **fields), timeout=timeout)

    def faults(*rules):
        put_faults(gateway.sandbox, *rules)

    def state(crk):
        found = stub.GetInvitation(pb.GetInvitationRequest(collector_id=COLLECTOR, crk=crk), timeout=PATIENCE)
        return pb.InvitationState.Name(found.state)

    def resolve(crk):
        return stub.ResolveInvitation(
            pb.ResolveInvitationRequest(collector_id=COLLECTOR, crk=crk, resolution=pb.RESOLUTION_ADDED), timeout=PATIENCE)

    # AddRespondent
    first = add("a-1", language="pl", custom1="złoty & gold=1")
    check("AddRespondent adds", pb.Outcome.Name(first.outcome), "OUTCOME_ADDED")
    check("and says after how many requests", first.attempts, 1)
    again = add("a-1", language="pl", custom1="złoty & gold=1")
    check("the same call again is a duplicate", pb.Outcome.Name(again.outcome), "OUTCOME_DUPLICATE")
    check("of the first one", again.added_at, first.added_at)
    check("one e-mail went out for both", emails(gateway, "a-1"), 1)
    reused = failure(lambda: add("a-1", email="ben@example.com"))
    check("the key with other data is refused", told(reused), ("ALREADY_EXISTS", "CRK_REUSED", "surveylab-gateway", "no"))
    bad = failure(lambda: stub.AddRespondent(
        pb.AddRespondentRequest(collector_id="no spaces", email="nobody", language="?"), timeout=PATIENCE))
    check("bad input is refused", told(bad), ("INVALID_ARGUMENT", "INVALID_REQUEST", "surveylab-gateway", "no"))
    check("with all that is wrong at once", [violation.field for violation in bad[1]["bad"].field_violations],
          ["collector_id", "crk", "email", "language"])
    check("validate_only says what would be done", pb.Outcome.Name(add("a-2", validate_only=True).outcome), "OUTCOME_WOULD_ADD")
    check("and does nothing", emails(gateway, "a-2"), 0)

    # StreamAddRespondent
    items = [request("a-1", language="pl", custom1="złoty & gold=1"), request("s-1"), request("s-2", email="nobody"), request("s-3")]
    results = {}
    for result in stub.StreamAddRespondent(iter(items), timeout=PATIENCE):
        kind = result.WhichOneof("result")
        results[result.sequence] = (
            result.crk,
            pb.Outcome.Name(result.added.outcome) if kind == "added" else details_of(result.error)["info"].reason,
        )
    check("a stream answers every item, and a bad one doesn't end it", results, {
        0: ("a-1", "OUTCOME_DUPLICATE"),
        1: ("s-1", "OUTCOME_ADDED"),
        2: ("s-2", "INVALID_REQUEST"),
        3: ("s-3", "OUTCOME_ADDED"),
    })

    # What the ledger knows
    check("GetInvitation", state("s-1"), "INVITATION_STATE_ADDED")
    unknown = failure(lambda: state("never-used"))
    check("an unknown key is not found", told(unknown),
          ("NOT_FOUND", "INVITATION_NOT_FOUND", "surveylab-gateway", "no"))
    listed, token = [], ""
    while True:
        page = stub.ListInvitations(
            pb.ListInvitationsRequest(collector_id=COLLECTOR, page_size=2, page_token=token), timeout=PATIENCE)
        listed += [invitation.crk for invitation in page.invitations]
        token = page.next_page_token
        if not token:
            break
    check("ListInvitations, page by page", listed, ["a-1", "s-1", "s-3"])

    # Doubt
    faults("reset_before_answer,crk=d-1")
    doubt = failure(lambda: add("d-1"))
    check("a lost answer is in doubt", told(doubt),
          ("FAILED_PRECONDITION", "OUTCOME_IN_DOUBT", "surveylab-gateway", "unknown"))
    faults()
    held = failure(lambda: add("d-1", client=patient))
    check("and held: a retrying client doesn't send again", told(held), told(doubt))
    check("still one e-mail", emails(gateway, "d-1"), 1)
    check("ResolveInvitation settles it", pb.InvitationState.Name(resolve("d-1").state), "INVITATION_STATE_ADDED")
    check("then the key is a duplicate", pb.Outcome.Name(add("d-1").outcome), "OUTCOME_DUPLICATE")
    check("what is not in doubt can't be resolved", told(failure(lambda: resolve("d-1"))),
          ("FAILED_PRECONDITION", "NOT_IN_DOUBT", "surveylab-gateway", "no"))

    # Deadline
    faults("hang,crk=t-1")
    late = failure(lambda: add("t-1", timeout=2))
    check("a deadline ends the call", late[0], "DEADLINE_EXCEEDED")
    check("not the request: its key is claimed", state("t-1"), "INVITATION_STATE_PENDING")
    faults()
    joined = pb.Outcome.Name(add("t-1").outcome)
    check("the same call again learns its outcome", joined in ("OUTCOME_ADDED", "OUTCOME_DUPLICATE"), True)
    check("with one e-mail", emails(gateway, "t-1"), 1)

    # README's retry policy. This gateway makes one attempt a call, so each try that helps is the client's.
    unavailable = ("UNAVAILABLE", "SURVEYLAB_UNAVAILABLE", "surveylab.com", "yes")
    faults("status=503,crk=r-1,times=1")
    once = failure(lambda: add("r-1"))
    check("a 503 is UNAVAILABLE without a policy", told(once), unavailable)
    check("and says when to try again", once[1]["retry"].retry_delay.ToMilliseconds() >= 1000, True)
    faults("status=503,crk=r-2,times=2")
    retried = add("r-2", client=patient)
    check("with README's policy the client tries again", (pb.Outcome.Name(retried.outcome), retried.attempts), ("OUTCOME_ADDED", 3))
    check("and one e-mail goes out", emails(gateway, "r-2"), 1)

    # Health and reflection
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        check(f"health of {service or 'the process'}", status, "SERVING")
    reflection = ProtoReflectionDescriptorDatabase(channel)
    check("reflection lists the service", SERVICE in reflection.get_services(), True)
    described = reflection.FindFileContainingSymbol(SERVICE)
    check("and its methods", [method.name for method in described.service[0].method],
          ["AddRespondent", "StreamAddRespondent", "GetInvitation", "ListInvitations", "ResolveInvitation", "GetStatus"])
    ready = http(f"http://{gateway.admin}/readyz")
    check("/readyz", ready, "ready\n")

    # GetStatus
    now = stub.GetStatus(pb.GetStatusRequest(), timeout=PATIENCE)
    check("GetStatus tells that it serves", (pb.ServingState.Name(now.state), now.state_reason), ("SERVING_STATE_SERVING", ""))
    check("its settings", (now.configured_rate, now.burst, now.max_in_flight, now.ledger, now.sandbox), (1000, 100, 32, "sqlite", True))
    check("that nothing waits", (now.waiting_unary, now.waiting_streams, now.open_streams), (0, 0, 0))
    check("and no pause", now.HasField("pause"), False)

    # Streams that are cancelled by the hundred, beside one on the same connection that goes on
    items = queue.SimpleQueue()
    going_on = stub.StreamAddRespondent(iter(items.get, None), timeout=4 * PATIENCE)
    answered = []
    for turn in range(10):
        items.put(request(f"g-{turn}"))
        leaving = []
        for number in range(40):
            more = queue.SimpleQueue()
            more.put(request(f"c-{turn}-{number}"))
            leaving.append((more, stub.StreamAddRespondent(iter(more.get, None), timeout=PATIENCE)))
        for number, (more, stream) in enumerate(leaving):
            if number % 2:
                next(stream)
            stream.cancel()
            more.put(None)
        answered.append(pb.Outcome.Name(next(going_on).added.outcome))
    items.put(None)
    check("a stream goes on while 400 on its connection are cancelled", answered + list(going_on), ["OUTCOME_ADDED"] * 10)

    # Each small message is a frame of its own, and all wait unread for the rate limit.
    waiting = [request(f"w-{number}") for number in range(5000)]
    outcomes = {pb.Outcome.Name(result.added.outcome) for result in stub.StreamAddRespondent(iter(waiting), timeout=PATIENCE)}
    check("a long list that waits for the rate limit is answered to its end", outcomes, {"OUTCOME_ADDED"})

    # A 429 makes everyone wait: the last check, as it blocks what comes after it.
    faults("status=429,retry_after=60,crk=l-1")
    limited = failure(lambda: add("l-1"))
    check("a 429 is RESOURCE_EXHAUSTED", told(limited),
          ("RESOURCE_EXHAUSTED", "SURVEYLAB_RATE_LIMITED", "surveylab.com", "yes"))
    waiting = failure(lambda: add("l-2", timeout=5))
    check("others learn at once that their deadline is too short", told(waiting),
          ("RESOURCE_EXHAUSTED", "WAIT_TOO_LONG", "surveylab-gateway", "no"))
    check("and when it makes sense to come again", 50 <= waiting[1]["retry"].retry_delay.seconds <= 60, True)
    paused = stub.GetStatus(pb.GetStatusRequest(), timeout=PATIENCE)
    check("GetStatus tells the pause and what it taught", (50 <= paused.pause.seconds <= 60, round(paused.learned_rate)), (True, 700))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        generate_stubs(directory)
        policy = service_config()
        gateway = Gateway(sys.argv[1], directory, "--rate=1000/s", "--burst=100", "--max-attempts=1")
        stack.callback(gateway.process.kill)
        channel = stack.enter_context(grpc.insecure_channel(gateway.address, options=[("grpc.enable_retries", 0)]))
        retrying = stack.enter_context(grpc.insecure_channel(gateway.address, options=[("grpc.service_config", policy)]))
        run(gateway, channel, retrying)
        code, log = gateway.stop()
        check("SIGTERM ends it with exit code 0", code, 0)
        check("no key was sent twice", "0 keys twice" in log, True)
    print(f"python client: {checks.passed} passed")


if __name__ == "__main__":
    main()
