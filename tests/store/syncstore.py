"""The function library over a blocking client, with the clock in the test's hands.

`TimedStore` runs a variant of the library whose only change is where TIME comes from: a key that the test sets. It is
another text, so it has names of its own and stands beside the shipped one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import redis

from kingtask.policy import Policy
from kingtask.result import Result
from kingtask.store import codec, functions
from kingtask.store.functions import Claimed, EndedTask, Fence, FunctionCall, Quota
from kingtask.store.keys import Keys
from kingtask.store.library import Library, shipped
from kingtask.store.stats import StoreStats
from kingtask.task import TaskSpec

START_MS = 1_800_000_000_000
"""Where every timed test begins (January 2027)."""

_TIME = "call('TIME')"
_CLOCK = "call('LRANGE', 'clock:' .. keys[1], 0, 1)"


@cache
def timed_library() -> Library:
    template = shipped().template
    assert template.count(_TIME) == 1, "TIME must be read in one place"
    return Library(template.replace(_TIME, _CLOCK))


class SyncStore:
    """One namespace on a real server; sends what `calls` makes and returns what it decodes."""

    def __init__(self, client: redis.Redis, namespace: str, library: Library | None = None) -> None:
        self.client = client
        self.keys = Keys(namespace)
        self.library = library or shipped()
        load(client, self.library)

    def ask(self, call: FunctionCall) -> Any:
        name = self.library.function(call.function)
        return call.decode(self.client.fcall(name, 1, self.keys.meta, call.payload(self.keys.db)))

    def stats(self) -> StoreStats:
        calls, value = functions.gather_stats(), None
        while True:
            try:
                value = self.ask(calls.send(value))
            except StopIteration as done:
                found: StoreStats = done.value
                return found


def load(client: redis.Redis, library: Library) -> None:
    """FUNCTION LOAD; that the very same text is there already is success."""
    try:
        client.function_load(library.text)
    except redis.ResponseError as error:
        if "already exists" not in str(error):
            raise


class TimedStore(SyncStore):
    """Adds a clock, short forms, and ids in falling order, so that an order by id never passes for one by time."""

    def __init__(self, client: redis.Redis, namespace: str, policy: Policy | None = None) -> None:
        super().__init__(client, namespace, timed_library())
        self.policy = policy or Policy()
        self.quota: Quota | None = None
        self.owner: str | None = None
        self.of: str | None = None
        """The rules of the client whose calls come next."""
        self._numbers = itertools.count(1)
        self.now_ms = START_MS
        self.at(START_MS)

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def at(self, ms: int, us: int = 0) -> None:
        """Set the server's clock as the functions see it."""
        self.now_ms = ms
        key = f"clock:{self.keys.meta}"
        pipeline = self.client.pipeline()
        pipeline.delete(key)
        pipeline.rpush(key, ms // 1000, ms % 1000 * 1000 + us)
        pipeline.execute()

    def pass_ms(self, ms: int) -> int:
        """Let time pass; returns the new now."""
        self.at(self.now_ms + ms)
        return self.now_ms

    # ── ids and tokens ──────────────────────────────────────────────────────────────────────────────────────────────

    def new_id(self) -> str:
        return f"00000000-0000-4000-8000-{0xFFFFFFFFFFFF - next(self._numbers):012x}"

    def new_token(self) -> bytes:
        """Sixteen bytes, among them those that text handling would stumble over."""
        return b"\x00:\n\xff" + next(self._numbers).to_bytes(12, "big")

    # ── short forms of the calls ────────────────────────────────────────────────────────────────────────────────────

    def submit(self, *specs: TaskSpec) -> functions.Submitted:
        """Submit specs that carry their ids."""
        tasks = []
        for spec in specs:
            assert spec.id is not None
            tasks.append(functions.prepare(spec.id, spec, self.quota, self.owner))
        submitted: functions.Submitted = self.ask(functions.submit(self.policy, tasks))
        return submitted

    def put(self, **fields: Any) -> str:
        """Submit one task made of these fields; return its id."""
        spec = self.spec(**fields)
        assert spec.id is not None
        assert self.submit(spec).outcomes[0] in ("ready", "scheduled")
        return spec.id

    def spec(self, **fields: Any) -> TaskSpec:
        return TaskSpec(**{"id": self.new_id(), "name": "example", **fields})

    def tick(
        self, *, broker: str = "b1", heartbeat: bytes = b"{}", upcoming: int = 1000, housekeep: bool = False
    ) -> functions.Ticked:
        call = functions.tick(self.policy, broker, heartbeat, upcoming=upcoming, window_ms=60_000, housekeep=housekeep)
        ticked: functions.Ticked = self.ask(call)
        return ticked

    def claim(
        self,
        n: int = 1,
        *,
        worker: str = "w1",
        queues: Sequence[str] = ("default",),
        token: bytes | None = None,
        nth: int = 1,
        again: bool = False,
    ) -> list[Claimed]:
        claims: functions.Claims = self.ask(
            functions.claim(
                self.policy, worker, functions.ClaimRequest(queues, n, token or self.new_token(), nth), again=again
            )
        )
        return claims.tasks

    def take(self, *, worker: str = "w1", queues: Sequence[str] = ("default",)) -> Fence:
        """Claim one task, which must be there; return its fence."""
        token = self.new_token()
        (claimed,) = self.claim(worker=worker, queues=queues, token=token)
        return Fence(claimed.id, claimed.number, token)

    def extend(
        self, *held: Fence, worker: str = "w1", claims: Sequence[bytes] = (), heartbeat: bytes = b"", upto: int = 1
    ) -> list[str]:
        answers: functions.Statuses = self.ask(
            functions.extend(self.policy, worker, held, claims, heartbeat, upto=upto)
        )
        return answers.answers

    def finish(self, *ended: EndedTask, worker: str = "w1", cut: bool = False) -> list[str]:
        return self.finish_and_claim(*ended, worker=worker, cut=cut, claim=None).answers

    def finish_and_claim(
        self, *ended: EndedTask, claim: functions.ClaimRequest | None, worker: str = "w1", cut: bool = False
    ) -> functions.Finished:
        finished: functions.Finished = self.ask(functions.finish(self.policy, worker, ended, cut=cut, claim=claim))
        return finished

    def end(self, fence: Fence, verdict: str = "succeeded", *, worker: str = "w1", cut: bool = False) -> str:
        """Finish one attempt; return the answer."""
        return self.finish(self.ended(fence, verdict), worker=worker, cut=cut)[0]

    def ended(
        self, fence: Fence, verdict: str = "succeeded", *, stdout: bytes = b"", stderr: bytes = b"", size: int = 0
    ) -> EndedTask:
        reason = "" if verdict == "succeeded" else "exit"
        packed = codec.pack_attempt(fence.number, "w1", self.now_ms - 1, self.now_ms, reason, exit_code=bool(reason))
        return EndedTask(fence, verdict, reason, packed, stdout, stderr, size or len(stdout), size or len(stderr))

    def release(self, *fences: Fence, worker: str = "w1") -> list[str]:
        rows = [
            (fence, codec.pack_attempt(fence.number, worker, self.now_ms, self.now_ms, "released")) for fence in fences
        ]
        answers: functions.Statuses = self.ask(functions.release(self.policy, worker, rows))
        return answers.answers

    def cancel(self, task_id: str) -> str:
        state: str = self.ask(functions.cancel(self.policy, task_id).of(self.of))
        return state

    def forget(self, task_id: str) -> str:
        answer: str = self.ask(functions.forget(task_id).of(self.of))
        return answer

    def requeue(self, task_id: str, new_id: str | None = None) -> tuple[str, str]:
        call = functions.requeue(self.policy, task_id, new_id or self.new_id(), self.quota)
        answer: tuple[str, str] = self.ask(call.of(self.of))
        return answer

    def wait(self, task_id: str) -> str:
        state: str = self.ask(functions.wait(task_id).of(self.of))
        return state

    def pause(self, queue: str = "default", paused: bool = True) -> str:
        answer: str = self.ask(functions.pause(self.policy, queue, paused, self.quota))
        return answer

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def find(self, task_id: str) -> Result | None:
        found: functions.StoredTask = self.ask(functions.get(task_id))
        return found.result

    def get(self, task_id: str) -> Result:
        result = self.find(task_id)
        assert result is not None, f"no task {task_id}"
        return result

    def state(self, task_id: str) -> str:
        states: list[str] = self.ask(functions.states([task_id]))
        return states[0]

    def field(self, task_id: str, name: str) -> bytes | None:
        value: bytes | None = self.client.hget(self.keys.task(task_id), name)  # type: ignore[assignment]
        return value

    def ttl_ms(self, task_id: str) -> int:
        """Milliseconds that the record is kept; -1 for ever, -2 if there is none."""
        ttl: int = self.client.pttl(self.keys.task(task_id))
        return ttl


def with_id(spec: TaskSpec, **changes: Any) -> TaskSpec:
    return msgspec.structs.replace(spec, **changes)
