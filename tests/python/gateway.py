"""Runs what is tested: a gateway, a sandbox; and makes the stubs to call it with."""

import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import urllib.request

import grpc_tools.protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVICE = "surveylab.invitation.v1.InvitationService"
COLLECTOR = "8379821739721"
# No call and no wait takes longer: what hangs fails the test.
PATIENCE = 30


def generate_stubs(directory):
    """The messages and the client, from the contract. google.rpc comes with googleapis-common-protos."""
    google = pathlib.Path(grpc_tools.protoc.__file__).parent / "_proto"
    proto = ROOT / "proto"
    done = grpc_tools.protoc.main([
        "protoc",
        f"--proto_path={proto}",
        f"--proto_path={google}",
        f"--python_out={directory}",
        f"--grpc_python_out={directory}",
        str(proto / "surveylab/invitation/v1/invitation.proto"),
    ])
    if done != 0:
        sys.exit("the stubs could not be generated")
    sys.path.insert(0, directory)


def http(request):
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return response.read().decode()


class Process:
    """A command of the binary. What it writes is read all the time, so that it never waits for a reader."""

    def __init__(self, *command, **environment):
        own = ("GATEWAY_", "SURVEYLAB_", "SANDBOX_", "RUST_LOG")
        env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        self.process = subprocess.Popen(
            command, env={**env, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        self.lines, self.unread = [], queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            self.unread.put(line)
        self.unread.put(None)

    def next_line(self):
        """The next line it wrote, waited for; that there is none fails the test."""
        try:
            line = self.unread.get(timeout=PATIENCE)
        except queue.Empty:
            sys.exit(f"FAILED  {self.process.args[1]} wrote nothing for {PATIENCE} s\n{''.join(self.lines[-5:])}")
        if line is None:
            sys.exit(f"FAILED  {self.process.args[1]} ended\n{''.join(self.lines[-5:])}")
        return line

    def kill(self):
        self.process.kill()
        self._ended()

    def stop(self):
        """Asks it to stop, as an init system does: exit code and all that it wrote."""
        self.process.send_signal(signal.SIGTERM)
        return self._ended(), "".join(self.lines)

    def _ended(self):
        code = self.process.wait(timeout=PATIENCE)
        self.reader.join(timeout=PATIENCE)
        return code


class Gateway(Process):
    """`serve`, its ledger in a directory. Where no SurveyLab is named, it has a sandbox inside."""

    def __init__(self, binary, directory, *settings, surveylab=None, listen="127.0.0.1:0", **environment):
        token = {"SURVEYLAB_API_TOKEN": "any"} if surveylab else {}
        super().__init__(
            binary, "serve", f"--surveylab-url={surveylab}" if surveylab else "--sandbox", f"--listen={listen}",
            "--admin-listen=127.0.0.1:0", "--log-format=json", f"--ledger=sqlite:{directory}/ledger.db", *settings,
            **token, **environment,
        )
        while (event := self.next_event())["message"] != "listening":
            if "report" in event:
                self.sandbox = event["report"].removesuffix("/report")
        self.address, self.admin = event["grpc"], event["admin"]

    def next_event(self):
        line = self.next_line()
        return json.loads(line) if line.startswith("{") else {"message": line}

    def wait_for(self, message, count):
        """Until it has logged a message so many times more."""
        for _ in range(count):
            while self.next_event()["message"] != message:
                pass


class Sandbox(Process):
    """The fake SurveyLab alone: it outlives the gateways, and tells what it received from all of them."""

    def __init__(self, binary, *settings):
        super().__init__(binary, "sandbox", "--listen=127.0.0.1:0", *settings)
        # SurveyLab's sandbox: http://127.0.0.1:8081/api.php (see http://127.0.0.1:8081/sandbox: ...)
        self.surveylab = self.next_line().split()[2]
        self.url = self.surveylab.removesuffix("/api.php") + "/sandbox"

    def report(self):
        return json.loads(http(f"{self.url}/report?keys=1"))

    def arrivals(self, crk):
        """When the requests of a key arrived, in seconds since the sandbox's start."""
        requests = json.loads(http(f"{self.url}/requests"))
        return [request["at_us"] / 1e6 for request in requests if ["crk", crk] in request["parameters"]]


def put_faults(sandbox, *faults):
    """Replaces a sandbox's faults."""
    http(urllib.request.Request(f"{sandbox}/faults", data=json.dumps(faults).encode(), method="PUT"))
