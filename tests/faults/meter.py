"""A client in good order that measures: `python -m tests.faults.meter ORDERS`, a JSON object.

It pings, submits and waits at a steady rate, on one connection to each address, which is never opened again: each
request must get one reply on it. It ends at SIGTERM, once all replies are there.
"""

from __future__ import annotations

import heapq
import itertools
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic_ns
from typing import Any

import msgspec
import zmq

from kingtask import TaskSpec, curve, protocol
from tests.faults import loads
from tests.faults.history import HistoryRecorder, Journal, Record

EVERY_S = 0.05
"""A ping and a submit to each address; each WAITED times a wait for as many tasks."""
WAITED = 10
REPLIES_S = 40.0
"""After SIGTERM, the longest wait for replies. Each `wait` ends before."""
WAIT_S = 30.0
AGAIN = frozenset({"busy", "unavailable", "not_confirmed"})
FILE = "meter.jsonl"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    endpoint: str
    curve_key: str = ""
    server_key: str = ""


class MeterOrders(msgspec.Struct, frozen=True, kw_only=True):
    directory: str
    addresses: list[Address]
    seed: str


class Answer(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A request and its reply, if any. A submit that was told to come again is one request."""

    mono_ns: int
    """When it was sent first."""
    address: str
    op: str
    took_ns: int | None = None
    code: str = "ok"
    again: int = 0
    """How often it was sent again."""


class Request:
    """One that waits for its reply."""

    def __init__(self, op: str, fields: dict[str, Any], spec: TaskSpec | None = None) -> None:
        self.op = op
        self.fields = fields
        self.spec = spec
        self.first_ns = 0
        self.record = 0
        """Its number in the history."""
        self.again = 0


class MeteredConnection:
    """The requests of one connection."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: Address, orders: MeterOrders) -> None:
        self.name = address.name
        self.dealer = context.socket(zmq.DEALER)
        self.dealer.linger = 0
        for option in (zmq.SNDHWM, zmq.RCVHWM):
            self.dealer.setsockopt(option, 0)
        self.dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        if address.curve_key:
            curve.read_client(address.curve_key, address.server_key).put_on(self.dealer)
        self.dealer.connect(address.endpoint)
        directory = Path(orders.directory)
        self._journal = Journal(directory / FILE)
        self._recorder = HistoryRecorder(directory, f"meter-{address.name}")
        self._random = Random(f"{orders.seed}-{address.name}")
        self._rids = itertools.count(1)
        self.open: dict[int, Request] = {}
        self._rests: list[tuple[float, int, Request]] = []
        self._ids: list[str] = []
        """Tasks that were accepted since the last waits."""

    def ask(self, number: int) -> None:
        """What is due in each turn."""
        self._send(Request("ping", {}))
        spec = loads.make("now", self._random, number, "", 1.0).spec
        self._send(Request("submit", {"task": msgspec.to_builtins(spec, builtin_types=(bytes,))}, spec))
        if number % WAITED == 0:
            ids, self._ids = self._ids, []
            for task_id in ids:
                self._send(Request("wait", {"id": task_id, "timeout_s": WAIT_S}))

    def ask_again(self) -> None:
        while self._rests and self._rests[0][0] <= time.monotonic():
            self._send(heapq.heappop(self._rests)[2])

    def _send(self, request: Request) -> None:
        rid = next(self._rids)
        self.open[rid] = request
        request.first_ns = request.first_ns or monotonic_ns()
        if request.spec is not None:
            assert request.spec.id is not None
            request.record = self._recorder.invoke("submit", request.spec.id, spec=request.spec)
        with suppress(zmq.Again):  # the connection has ended: no reply will come
            self.dealer.send(protocol.encode_request(rid, request.op, request.fields), zmq.NOBLOCK)

    def receive(self) -> None:
        """Read all replies that are there."""
        try:
            while True:
                self._received(protocol.decode_reply(self.dealer.recv(zmq.NOBLOCK)))
        except zmq.Again:
            return

    def _received(self, reply: dict[str, Any]) -> None:
        request = self.open.pop(reply["rid"])
        if reply["ok"]:
            if request.spec is not None:
                self._recorder.ok(request.record, outcome=reply["outcome"], ack=reply["ack"])
                self._ids.append(reply["id"])
            self._note(request, "ok")
            return
        error = protocol.error_from(reply["error"])
        if request.spec is not None:
            self._recorder.error(request.record, error)
            if error.code in AGAIN:
                request.again += 1
                again_s = time.monotonic() + (error.retry_after_s or EVERY_S)
                heapq.heappush(self._rests, (again_s, next(self._rids), request))
                return
        self._note(request, error.code)

    def _note(self, request: Request, code: str, *, answered: bool = True) -> None:
        took_ns = monotonic_ns() - request.first_ns if answered else None
        answer = Answer(
            mono_ns=request.first_ns,
            address=self.name,
            op=request.op,
            took_ns=took_ns,
            code=code,
            again=request.again,
        )
        self._journal.write(answer)

    def close(self) -> None:
        """Note the requests without a reply."""
        for request in [*self.open.values(), *(request for _, _, request in self._rests)]:
            self._note(request, "no reply", answered=False)
        self._recorder.close()
        self._journal.close()
        self.dealer.close()


def run(orders: MeterOrders) -> None:
    over_s = 0.0

    def end(number: int, frame: object) -> None:
        nonlocal over_s
        over_s = time.monotonic() + REPLIES_S

    signal.signal(signal.SIGTERM, end)
    with zmq.Context() as context:
        connections = [MeteredConnection(context, address, orders) for address in orders.addresses]
        poller = zmq.Poller()
        for connection in connections:
            poller.register(connection.dealer, zmq.POLLIN)
        by_socket = {connection.dealer: connection for connection in connections}
        next_s, number = time.monotonic(), 0
        while not over_s or (time.monotonic() < over_s and any(connection.open for connection in connections)):
            if not over_s and time.monotonic() >= next_s:
                number += 1
                next_s += EVERY_S
                for connection in connections:
                    connection.ask(number)
            for connection in connections:
                connection.ask_again()
            wait_s = EVERY_S if over_s else max(0.0, next_s - time.monotonic())
            for socket, _ in poller.poll(int(1000 * wait_s)):
                by_socket[socket].receive()
        for connection in connections:
            connection.close()


if __name__ == "__main__":
    run(msgspec.json.decode(sys.argv[1], type=MeterOrders))
