"""Adds the respondents of a list through a gateway. Run again, it goes on where it stopped.

    bulk.py [--target HOST:PORT] [--tries COUNT] ROWS RESULTS

ROWS has an AddRespondentRequest as JSON on each line. RESULTS gets a line for each answer: ADDED, DUPLICATE, FAILED or
IN_DOUBT. A row is known by its line, its collector and its crk. Exit code: 0 all are added, 1 not all are answered (run
it again), 2 wrong arguments or rows, 3 some failed, 4 some are in doubt.

Needs grpcio, googleapis-common-protos, and stubs made from the contract (with grpcio-tools), beside this file:

    python -m grpc_tools.protoc -I ../../../proto --python_out=. --grpc_python_out=. \\
        surveylab/invitation/v1/invitation.proto
"""

import argparse
import collections
import json
import os
import random
import sys
import time

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from surveylab.invitation.v1 import invitation_pb2 as pb
from surveylab.invitation.v1 import invitation_pb2_grpc

OPTIONS = {
    # The stream has no deadline. Who else would notice that the gateway's machine is gone?
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    # The default waits up to two minutes before it looks again.
    "grpc.initial_reconnect_backoff_ms": 500,
    "grpc.max_reconnect_backoff_ms": 5_000,
}


def read(path):
    """The rows, one at a time: a list may be larger than the memory."""
    with open(path, encoding="utf-8") as rows:
        for number, line in enumerate(rows, start=1):
            if line.strip():
                try:
                    request = json_format.Parse(line, pb.AddRespondentRequest())
                except json_format.ParseError:
                    # Not its words: they quote the row, which is about a person.
                    raise ValueError(f"{path}: line {number} is no AddRespondentRequest") from None
                yield (number, request.collector_id, request.crk), request


class Results:
    def __init__(self, path):
        self.outcomes = {}
        self.file = open(path, "a+b")
        self.file.seek(0)
        whole = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break  # Its writer was killed. The row is sent again.
            whole += len(line)
            result = json.loads(line)
            self.outcomes[result["row"], result["collectorId"], result["crk"]] = result["outcome"]
        self.file.truncate(whole)

    def add(self, key, outcome, **why):
        row, collector_id, crk = key
        result = {"row": row, "collectorId": collector_id, "crk": crk, "outcome": outcome, **why}
        self.file.write(json.dumps(result).encode() + b"\n")
        self.file.flush()
        self.outcomes[key] = outcome

    def tally(self, rows):
        return collections.Counter(self.outcomes.get(key, "missing") for key, _ in read(rows))


# [core]


def add_missing(stub, rows, results):
    """One stream with each row that has no result yet. Returns the seconds to wait before another one."""
    sent, later, not_before = {}, collections.Counter(), 0.0

    def requests():
        missing = ((key, request) for key, request in read(rows) if key not in results.outcomes)
        for sequence, (key, request) in enumerate(missing):
            sent[sequence] = key
            yield request

    try:
        # gRPC takes the requests in a thread of its own, only as fast as the gateway reads them.
        for answer in stub.StreamAddRespondent(requests()):
            key = sent.pop(answer.sequence)
            if answer.HasField("added"):
                results.add(key, pb.Outcome.Name(answer.added.outcome).removeprefix("OUTCOME_"))
                continue
            reason, retry_after = details(answer.error)
            if retry_after is None:
                outcome = "IN_DOUBT" if reason == "OUTCOME_IN_DOUBT" else "FAILED"
                results.add(key, outcome, reason=reason, message=answer.error.message)
            else:  # It gets no result, so the next stream takes it.
                later[reason] += 1
                not_before = max(not_before, time.monotonic() + retry_after)
    except grpc.RpcError as error:
        print(f"the stream ended: {error.code().name}: {error.details()}", file=sys.stderr)
    if later:
        print("to be sent again:", dict(later), file=sys.stderr)
    os.fsync(results.file.fileno())
    return max(0.0, not_before - time.monotonic())


# [/core]


def details(status):
    """The reason of an error, and after how many seconds another try makes sense, if one does."""
    info, retry, retry_after = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return info.reason, retry_after


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rows")
    parser.add_argument("results")
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--tries", type=int, default=10, help="streams in a row that may bring no result")
    args = parser.parse_args()
    try:
        # A list with a broken line is refused before any of it is sent.
        collections.deque(read(args.rows), maxlen=0)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    results = Results(args.results)
    wait, fruitless = 0.0, 0
    with grpc.insecure_channel(args.target, options=list(OPTIONS.items())) as channel:
        stub = invitation_pb2_grpc.InvitationServiceStub(channel)
        while (outcomes := results.tally(args.rows))["missing"]:
            if fruitless == args.tries:
                print("gave up, run it again:", dict(outcomes), file=sys.stderr)
                return 1
            time.sleep(wait)
            known = len(results.outcomes)
            wait = add_missing(stub, args.rows, results)
            fruitless = 0 if len(results.outcomes) > known else fruitless + 1
            # With jitter, so that not all who were cut off come back at once.
            wait = max(wait, random.uniform(1, 2) * min(16, 2**fruitless))
    print(dict(outcomes))
    return 4 if outcomes["IN_DOUBT"] else 3 if outcomes["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
