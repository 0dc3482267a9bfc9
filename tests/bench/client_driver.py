"""The client of one build, in a process of its own: `python -P client_driver.py`, with that build on PYTHONPATH.

Its pipes are those of `adapters.serve`: a line of JSON in, a line of JSON out. Only what every build has is used: the
public client, and version 1 of the protocol. All numbers are seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import uuid
from typing import Any

import msgpack
import zmq

import kingtask
from kingtask import Client

BROKER = os.environ["BENCH_BROKER"]
ARGS = ("12", "45")
RETRY = (5, 8, 9)
UNSERVED = "unserved"
"""A queue without a worker: a submit there is a submit and nothing else."""

Numbers = dict[str, Any]


class BuildClient:
    """One connected client; each public method is a section."""

    def __init__(self) -> None:
        self._client = Client(BROKER, timeout=60)
        self._dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.RCVTIMEO, 30_000)
        self._dealer.connect(BROKER)
        self._planned: list[tuple[float, Any]] = []

    def hello(self) -> Numbers:
        """Which code runs here and in the broker."""
        return {
            "kingtask": kingtask.__file__,
            "versions": {"client": kingtask.__version__, "broker": self._client.ping()["version"]},
        }

    def trip(self) -> Numbers:
        """Run one task: until the reply to its submit, until its main(), until its result is here."""
        called_at = time.time()
        begun = time.perf_counter()
        task = self._client.submit("probe", ARGS, retry=RETRY)
        replied = time.perf_counter()
        stdout = task.result(60)
        ended = time.perf_counter()
        return {"reply": replied - begun, "start": int(stdout) / 1e9 - called_at, "round-trip": ended - begun}

    def execute(self, n: int) -> Numbers:
        """Run n tasks, submitted one by one: from the first submit until the last result is here."""
        begun = time.perf_counter()
        tasks = [self._client.submit("probe", ARGS, retry=RETRY) for _ in range(n)]
        succeeded = sum(result.success for result in self._client.as_completed(tasks, 60))
        taken = time.perf_counter() - begun
        assert succeeded == n, f"{succeeded} of {n} tasks succeeded"
        return {"seconds": taken}

    def submit(self, n: int) -> Numbers:
        """Submit n tasks, each after the reply to the one before."""
        begun = time.perf_counter()
        for _ in range(n):
            self._client.submit("probe", ARGS, retry=RETRY, queue=UNSERVED)
        return {"seconds": time.perf_counter() - begun}

    def pipeline(self, n: int) -> Numbers:
        """Send n submits of one task each on a bare DEALER; then receive the replies."""
        messages = [
            msgpack.packb(
                {
                    "v": 1,
                    "rid": rid,
                    "op": "submit",
                    "task": {
                        "id": str(uuid.uuid4()),
                        "name": "probe",
                        "args": ARGS,
                        "retry": RETRY,
                        "queue": UNSERVED,
                    },
                }
            )
            for rid in range(n)
        ]
        begun = time.perf_counter()
        for message in messages:
            self._dealer.send(message)
        replies = [self._dealer.recv() for _ in messages]
        taken = time.perf_counter() - begun
        refused = [reply for reply in map(msgpack.unpackb, replies) if not reply["ok"]]
        assert not refused, refused[0]
        return {"seconds": taken}

    def plan(self, instants: list[float]) -> Numbers:
        """Submit a task for each of these instants (epoch seconds)."""
        self._planned = [(at, self._client.submit("probe", ARGS, retry=RETRY, at=at)) for at in instants]
        return {}

    def late(self) -> Numbers:
        """Wait for the tasks of `plan`: how long after its instant each main() began."""
        return {"samples": [int(task.result(60)) / 1e9 - at for at, task in self._planned]}


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library may print; standard output is for answers only
    driver = BuildClient()
    out.write(json.dumps(driver.hello()) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(driver, asked["section"])(**asked["args"])
        except Exception:  # noqa: BLE001  (the parent reports every failure of this build)
            answer = {"error": traceback.format_exc()[-2000:]}
        out.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
