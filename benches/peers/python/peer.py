"""The afternoon version: what a gateway is when somebody writes it in Python with what is at hand.

    peer.py LISTEN SURVEYLAB LEDGER [--group-commit]

grpc.aio, aiohttp, and sqlite3 as a durable ledger: claimed before the request, settled before the answer, each with a
commit of its own or, with --group-commit, with all that wait at that moment. A token bucket before the request.
"""

import argparse
import asyncio
import concurrent.futures
import pathlib
import sqlite3
import sys
import tempfile
import time

import aiohttp
import grpc
import grpc_tools.protoc

PROTO = pathlib.Path(__file__).resolve().parents[3] / "proto"
CONTRACT = "surveylab/invitation/v1/invitation.proto"
WINDOW = 256

stubs = tempfile.TemporaryDirectory()
# The well-known types come with grpcio-tools.
well_known = pathlib.Path(grpc_tools.protoc.__file__).parent / "_proto"
compiler = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={stubs.name}", f"--grpc_python_out={stubs.name}", CONTRACT]
if grpc_tools.protoc.main(compiler) != 0:
    sys.exit("the contract can't be compiled")
sys.path.insert(0, stubs.name)
from surveylab.invitation.v1 import invitation_pb2 as pb  # noqa: E402
from surveylab.invitation.v1 import invitation_pb2_grpc as service  # noqa: E402


class Ledger:
    def __init__(self, path, group_commit):
        self.group_commit = group_commit
        self.thread = concurrent.futures.ThreadPoolExecutor(1)
        self.waiting = asyncio.Queue()
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("CREATE TABLE invitation (key TEXT PRIMARY KEY, added REAL) WITHOUT ROWID")

    async def claim(self, key):
        """None if the key is new, and now claimed; else when it was added, or 0 if that is not known."""
        return await self.ask(("claim", key))

    async def settle(self, key):
        return await self.ask(("settle", key))

    async def ask(self, step):
        if not self.group_commit:
            answers = await asyncio.get_running_loop().run_in_executor(self.thread, self.run, [step])
            return answers[0]
        answer = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((step, answer))
        return await answer

    async def commit_groups(self):
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.waiting.get()]
            while not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            answers = await loop.run_in_executor(self.thread, self.run, [step for step, _ in batch])
            for (_, future), answer in zip(batch, answers):
                if not future.cancelled():
                    future.set_result(answer)

    def run(self, steps):
        answers = []
        self.db.execute("BEGIN IMMEDIATE")
        for what, key in steps:
            now = time.time()
            if what == "settle":
                self.db.execute("UPDATE invitation SET added = ? WHERE key = ?", (now, key))
                answers.append(now)
            elif self.db.execute("INSERT OR IGNORE INTO invitation VALUES (?, 0)", (key,)).rowcount:
                answers.append(None)
            else:
                answers.append(self.db.execute("SELECT added FROM invitation WHERE key = ?", (key,)).fetchone()[0])
        self.db.execute("COMMIT")
        return answers


class Bucket:
    def __init__(self, rate, burst):
        self.rate, self.burst, self.tokens, self.at = rate, burst, burst, time.monotonic()

    async def take(self):
        while True:
            now = time.monotonic()
            self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
            self.at = now
            if self.tokens >= 1:
                self.tokens -= 1
                return
            await asyncio.sleep((1 - self.tokens) / self.rate)


class Invitations(service.InvitationServiceServicer):
    def __init__(self, ledger, bucket, session, url):
        self.ledger, self.bucket, self.session, self.url = ledger, bucket, session, url

    async def add(self, request):
        key = f"{request.collector_id}/{request.crk}"
        added = await self.ledger.claim(key)
        if added is not None:
            if not added:
                raise RuntimeError("its outcome is in doubt")
            return pb.AddRespondentResponse(crk=request.crk, outcome=pb.OUTCOME_DUPLICATE, attempts=1)
        await self.bucket.take()
        parameters = {
            "apiToken": "token",
            "cId": request.collector_id,
            "email": request.email,
            "crk": request.crk,
            "language": request.language,
            "firstName": request.first_name,
            "lastName": request.last_name,
        }
        async with self.session.get(self.url, params=parameters) as response:
            answer = await response.json()
        if not answer["status"]:
            raise RuntimeError(answer["notification"])
        await self.ledger.settle(key)
        return pb.AddRespondentResponse(
            crk=request.crk, outcome=pb.OUTCOME_ADDED, notification=answer["notification"], attempts=1
        )

    async def AddRespondent(self, request, context):
        return await self.add(request)

    async def StreamAddRespondent(self, requests, context):
        results, places = asyncio.Queue(), asyncio.Semaphore(WINDOW)

        async def answer(sequence, request):
            added = await self.add(request)
            results.put_nowait(pb.StreamAddRespondentResponse(sequence=sequence, crk=request.crk, added=added))

        async def read():
            async with asyncio.TaskGroup() as tasks:
                sequence = 0
                async for request in requests:
                    await places.acquire()
                    tasks.create_task(answer(sequence, request))
                    sequence += 1
            results.put_nowait(None)

        reader = asyncio.create_task(read())
        while (result := await results.get()) is not None:
            places.release()
            yield result
        await reader


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("listen")
    parser.add_argument("surveylab")
    parser.add_argument("ledger")
    parser.add_argument("--group-commit", action="store_true")
    arguments = parser.parse_args()

    ledger = Ledger(arguments.ledger, arguments.group_commit)
    groups = asyncio.create_task(ledger.commit_groups())
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        server = grpc.aio.server()
        url = f"http://{arguments.surveylab}/webhook"
        invitations = Invitations(ledger, Bucket(1_000_000, 100_000), session, url)
        service.add_InvitationServiceServicer_to_server(invitations, server)
        server.add_insecure_port(arguments.listen)
        await server.start()
        await asyncio.gather(groups, server.wait_for_termination())


asyncio.run(main())
