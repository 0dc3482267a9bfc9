"""A broker of a few lines for what a real one never does: one thread, one ROUTER, the real protocol, a script.

Without a script every task succeeds at once. A script gets each request and returns the reply's fields, an error, bytes
to be sent as they are, a list of any of them, or SILENCE; `Responder.push` sends more at any time.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from typing import Any, Self

import zmq

from kingtask import protocol, wire
from kingtask.errors import InvalidRequest, RequestRefused, TaskNotFound
from kingtask.result import Result
from kingtask.states import State

PATIENCE_S = 20.0
"""How long a condition may take on a loaded machine before a test gives up."""

Request = dict[str, Any]
Script = Callable[[Request], Any]

SILENCE: list[bytes] = []


def result(task_id: str, state: State = State.SUCCEEDED, **fields: Any) -> Result:
    given = {"name": "example", "queue": "default", "priority": 5, "created_at": 1.0, "due_at": 1.0, **fields}
    return Result(id=task_id, state=state, **given)


def task_reply(found: Result) -> dict[str, Any]:
    """The fields of a reply to `get` or `wait`."""
    return {"task": protocol.result_fields(found), "pending": not found.ended}


class Responder:
    """Starts at once. `requests` has every request, `messages` its bytes, in the order of arrival."""

    def __init__(self, script: Script | None = None, *, endpoint: str = "tcp://127.0.0.1:*") -> None:
        self.script = script or self.succeed
        self.endpoint = endpoint
        self.requests: list[Request] = []
        self.messages: list[bytes] = []
        self.tasks: dict[str, Request] = {}
        self.queues: dict[str, bool] = {}
        self._peers: list[bytes] = []
        self._changed = Condition()
        self._orders: deque[Callable[[zmq.Socket[bytes]], None] | None] = deque()
        self._thread: Thread | None = None
        self.start()

    def start(self) -> None:
        """Listen, at the same address as before."""
        self._bell, self._ear = socket.socketpair()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.bind(self.endpoint)
        self.endpoint = router.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]
        self._thread = Thread(target=self._serve, args=(context, router), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Die: connections drop, new ones are refused. Idempotent."""
        if self._thread is None:
            return
        self._order(None)
        self._thread.join(PATIENCE_S)
        self._thread = None
        self._bell.close()
        self._ear.close()

    def push(self, request: Request, answer: Any) -> None:
        """Answer a request that was met with SILENCE, or again."""
        peer = self._peers[self.requests.index(request)]
        self._order(lambda router: self._reply(router, peer, request, answer))

    def received(self, number: int) -> list[Request]:
        """Wait until so many requests have come; return them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= number, PATIENCE_S), self.requests
            return self.requests[:number]

    def ops(self) -> list[str]:
        return [request["op"] for request in self.requests]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def succeed(self, request: Request) -> Any:
        """The usual script."""
        match request["op"]:
            case "submit" if "task" in request:
                return self._store(request["task"])
            case "submit":
                return {"ack": "stored", "outcomes": [self._store(task) for task in request["tasks"]]}
            case "get" | "wait" if request["id"] in self.tasks:
                task = self.tasks[request["id"]]
                found = result(task["id"], name=task["name"], stdout=" ".join(task.get("args", ())).encode())
                return task_reply(found)
            case "forget" if self.tasks.pop(request["id"], None):
                return {"id": request["id"], "outcome": "forgotten"}
            case "get" | "wait" | "cancel" | "forget":
                return TaskNotFound(f"id: there is no task {request['id']}", field="id")
            case "requeue":
                return {"id": request["new_id"], "origin": request["id"], "outcome": "created"}
            case "pause" | "resume":
                self.queues[request["queue"]] = request["op"] == "pause"
                return {"queue": request["queue"], "paused": self.queues[request["queue"]]}
            case "list":
                return {"tasks": [], "cursor": None}
            case "stats":
                return {"now": 1.0, "queues": [], "workers": [], "brokers": []}
            case "ping":
                return {"server": "kingtask", "version": "0", "protocols": [1], "ready": True}
            case op:
                return InvalidRequest(f"op: {op}", code="unknown_op", field="op")

    def _store(self, task: Request) -> Request:
        outcome = "exists" if task["id"] in self.tasks else "created"
        self.tasks[task["id"]] = task
        return {"id": task["id"], "outcome": outcome}

    def _order(self, action: Callable[[zmq.Socket[bytes]], None] | None) -> None:
        self._orders.append(action)
        self._bell.send(b"!")

    def _serve(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        with context, router:
            poller = zmq.Poller()
            poller.register(router, zmq.POLLIN)
            poller.register(self._ear.fileno(), zmq.POLLIN)
            while True:
                ready = dict(poller.poll())
                if self._ear.fileno() in ready:
                    self._ear.recv(1)
                    action = self._orders.popleft()
                    if action is None:
                        return
                    action(router)
                if router in ready:
                    self._take(router)

    def _take(self, router: zmq.Socket[bytes]) -> None:
        peer, message = router.recv_multipart()
        request = wire.decode(message)
        with self._changed:
            self._peers.append(peer)
            self.messages.append(message)
            self.requests.append(request)
            self._changed.notify_all()
        self._reply(router, peer, request, self.script(request))

    def _reply(self, router: zmq.Socket[bytes], peer: bytes, request: Request, answer: Any) -> None:
        for one in answer if isinstance(answer, list) else [answer]:
            if isinstance(one, RequestRefused):
                message = protocol.refusal(request["rid"], one)
            else:
                message = one if isinstance(one, bytes) else protocol.ok(request["rid"], one)
            router.send_multipart([peer, message])
