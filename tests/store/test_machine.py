"""Random stories, told to a real server and to the model; after each step both must be the same."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha1
from typing import Any
from uuid import uuid4

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kingtask.policy import Policy
from kingtask.states import TERMINAL, State
from kingtask.store import codec
from kingtask.store.functions import Fence, Quota
from kingtask.task import TaskSpec
from kingtask.wire import unpack_raw
from tests.servers import RedisServer
from tests.store import keyspace
from tests.store.listener import ChannelListener
from tests.store.model import Model, ModelTask
from tests.store.syncstore import START_MS, TimedStore, with_id

POLICY = Policy(
    max_queues=3,
    max_queue_length=12,
    max_tasks=14,
    max_result_bytes=4000,
    max_lost=2,
    kept_bounds={"alice": 1800, "": 2500},
)
QUEUES = ["default", "q", "r", "one-too-many"]
WORKERS = ["w1", "w2"]


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """So that stories get somewhere: the rare is rare."""
    return st.sampled_from([*[usual] * 2 * len(others), *others])


specs = st.fixed_dictionaries(
    {
        "queue": mostly("default", *QUEUES[1:]),
        "priority": mostly(5, 4, 6),
        "delay_s": mostly(0.0, 0.001, 0.002, 10.0, 59.0, 60.0, 61.0),
        "start_at": mostly(0.0, *(START_MS / 1000 + s for s in (-1, 0.001, 1, 60))),
        "retry": st.lists(st.sampled_from([0.0, 0.5, 3.0, 20.0]), max_size=3).map(tuple),
        "expires_at": mostly(None, *(START_MS / 1000 + s for s in (0.001, 10, 60))),
        "keep_result_s": mostly(None, 100.0, 1e6),
        "on_lost": mostly("retry", "fail"),
        "args": mostly((), ("x" * 1020,), ("x" * 1021,), ("y" * 1500,)),
    }
).map(lambda fields: fields if not fields["delay_s"] else {**fields, "start_at": 0.0})
picks = st.integers(0, 10_000)
"""Chooses one of whatever there is at that moment."""
verdicts = st.sampled_from(["succeeded", "failed", "failed", "final"])


class StoreMachine(RuleBasedStateMachine):
    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self.store = TimedStore(client, uuid4().hex, POLICY)
        self.listener = ChannelListener(self.store)
        self.model = Model(POLICY, self.store.now_ms)
        self.fences: list[Fence] = []
        """All that were ever given out, most of them stale."""
        self.unheard: list[tuple[str, bytes, int]] = []
        """Worker, token and number of claims whose reply was lost."""
        self.claims = 0

    def teardown(self) -> None:
        self.listener.close()
        keyspace.remove(self.store.client, self.store.keys)

    # ── tasks in ────────────────────────────────────────────────────────────────────────────────────────────────────

    @initialize(given=st.lists(specs, min_size=6, max_size=8))
    def begin(self, given: list[dict[str, Any]]) -> None:
        self.submit(given)

    @rule(given=st.lists(specs, min_size=1, max_size=4))
    def submit(self, given: list[dict[str, Any]]) -> None:
        self._submit([self.store.spec(**one) for one in given])

    @precondition(lambda self: self.model.tasks)
    @rule(pick=picks, change=st.sampled_from([{}, {}, {"priority": 9}, {"delay_s": 7.0, "start_at": 0.0}]))
    def submit_a_known_id(self, pick: int, change: dict[str, Any]) -> None:
        self._submit([with_id(self._task(pick).spec, **change), self.store.spec()])

    def _submit(self, specs: list[TaskSpec]) -> None:
        found = self.store.submit(*specs)
        assert (found.outcomes, dict(found.ready), found.due_ms) == self.model.submit(specs)

    @rule(
        quota=st.sampled_from(
            [
                None,
                Quota("alice", 2),
                Quota("alice", 4, True),
                Quota("alice", 0, True, 50_000),
                Quota("bob", 3, True),
                Quota("bob", 0, False, 50_000),
                Quota("alice", 4, False, 0, 1),
                Quota("bob", 0, False, 0, 1),
            ]
        ),
        owner=mostly(None, "alice", "bob"),
        own_only=st.booleans(),
    )
    def another_client_comes(self, quota: Quota | None, owner: str | None, own_only: bool) -> None:
        self.store.quota = self.model.quota = quota
        self.store.owner = self.model.owner = owner
        self.store.of = self.model.of = owner if own_only else None

    @precondition(lambda self: self.model.tasks)
    @rule(pick=picks, other=st.none() | picks)
    def requeue(self, pick: int, other: int | None) -> None:
        old = self._task(pick).id
        new = self.store.new_id() if other is None else self._task(other).id
        assert self.store.requeue(old, new)[0] == self.model.requeue(old, new)

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(ms=st.sampled_from([1, 499, 500, 1000, 3001, 15_000, -2000]))
    def time_passes(self, ms: int) -> None:
        self.model.now = self.store.pass_ms(ms)

    @precondition(lambda self: self.model.scheduled())
    @rule(before_ms=st.integers(0, 1))
    def the_next_instant_comes(self, before_ms: int) -> None:
        self.model.now = self.model.scheduled()[0].due - before_ms
        self.store.at(self.model.now, us=999)

    @rule(housekeep=st.booleans())
    def tick(self, housekeep: bool) -> None:
        found = self.store.tick(housekeep=housekeep)
        assert (dict(found.ready), found.upcoming_ms, len(found.lost)) == self.model.tick()
        assert (found.complete, found.more) == (True, False)

    @rule(seconds=st.sampled_from([1, 5, 14, 15, 16]))
    def seconds_pass(self, seconds: int) -> None:
        for _ in range(seconds):
            self.time_passes(1000)
            self.tick(housekeep=False)

    @precondition(lambda self: self.model.running())
    @rule(ms=st.sampled_from([3000, 3001, 4000]))
    def a_lease_ends_after_an_outage(self, ms: int) -> None:
        """Or not quite: of 3 s it is none."""
        self.model.now = self.store.pass_ms(max(0, self.model.running()[0].lease_end - ms - self.model.now))
        self.tick(housekeep=False)
        self.time_passes(ms)
        self.tick(housekeep=False)

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        worker=st.sampled_from(WORKERS),
        queues=st.permutations(QUEUES[:3]),
        n=st.integers(1, 4),
        heard=mostly(True, False),
    )
    def claim(self, worker: str, queues: list[str], n: int, heard: bool) -> None:
        token = self.store.new_token()
        self._claim(worker, queues, n, token, again=False)
        if not heard:
            self.unheard.append((worker, token, self.claims))

    @precondition(lambda self: any(self.model.ready(queue) for queue in QUEUES[:3]))
    @rule(verdict=verdicts, pick=picks)
    def claim_and_finish(self, verdict: str, pick: int) -> None:
        self._claim("w1", QUEUES[:3], 1, self.store.new_token(), again=False)
        running = [task.fence for task in self.model.running() if task.worker == "w1"]
        if running:
            self._finish("w1", [(running[pick % len(running)], verdict, b"out" * 200)], cut=False)

    @precondition(lambda self: any(self.model.ready(queue) for queue in QUEUES[:3]))
    @rule(n=st.integers(1, 3), under_way=st.booleans(), again=st.booleans())
    def a_reply_is_lost(self, n: int, under_way: bool, again: bool) -> None:
        """The worker renews what it knows of, and perhaps asks for the reply once more."""
        token = self.store.new_token()
        known = [task.fence for task in self.model.running() if task.worker == "w1"]
        self._claim("w1", QUEUES[:3], n, token, again=False)
        self._extend("w1", known, [token] if under_way else [])
        if again:
            self._claim("w1", QUEUES[:3], n, token, again=True)

    @precondition(lambda self: self.model.running())
    @rule(pick=picks)
    def a_running_task_fails_and_is_tried_again(self, pick: int) -> None:
        running = self.model.running()
        task = running[pick % len(running)]
        self._finish(task.worker, [(task.fence, "failed", b"")], cut=False)
        if task.state is State.SCHEDULED:
            self.model.now = max(self.model.now, task.due)
            self.store.at(self.model.now)
            self.tick(housekeep=False)
            self._claim("w1", [task.queue], 9, self.store.new_token(), again=False)

    @precondition(lambda self: self.model.running())
    @rule(pick=picks, end=st.sampled_from(["extend", "forget", "release", "succeeded", "failed"]))
    def a_running_task_is_cancelled(self, pick: int, end: str) -> None:
        running = self.model.running()
        task = running[pick % len(running)]
        assert self.store.cancel(task.id) == self.model.cancel(task.id)
        theirs = [other.fence for other in running if other.worker == task.worker]
        if end in ("extend", "forget"):
            self._extend(task.worker, [fence for fence in theirs if end == "extend" or fence != task.fence], [])
        elif end == "release":
            assert self.store.release(task.fence, worker=task.worker) == self.model.release([task.fence])
        else:
            self._finish(task.worker, [(task.fence, end, b"")], cut=False)

    @precondition(lambda self: self.unheard)
    @rule(pick=picks, n=st.integers(1, 4))
    def claim_again(self, pick: int, n: int) -> None:
        worker, token, nth = self.unheard[pick % len(self.unheard)]
        self._claim(worker, ["default"], n, token, again=True, nth=nth)

    def _claim(
        self, worker: str, queues: list[str], n: int, token: bytes, *, again: bool, nth: int | None = None
    ) -> None:
        if nth is None:
            self.claims += not again
            nth = self.claims
        found = self.store.claim(n, worker=worker, queues=queues, token=token, nth=nth, again=again)
        wanted = self.model.claim(worker, queues, n, token, nth=nth, again=again)
        order: Callable[[tuple[Any, ...]], Any] = (lambda row: row) if again else (lambda row: 0)  # a hash has no order
        assert sorted(
            ((task.id, task.number, task.queue, task.due_ms, task.fail_if_lost, task.claimed_ms) for task in found),
            key=order,
        ) == sorted(
            (
                (task.id, task.attempt, task.queue, task.due, task.spec.on_lost == "fail", task.claimed)
                for task in wanted
            ),
            key=order,
        )
        self.fences += [task.fence for task in wanted if task.fence not in self.fences]

    @rule(worker=st.sampled_from(WORKERS), forget=mostly(None, 0, 1), stale=st.none() | picks, late=mostly(0, 1, 3))
    def extend(self, worker: str, forget: int | None, stale: int | None, late: int) -> None:
        unheard = [token for _, token, _ in self.unheard]
        held = [task.fence for task in self.model.running() if task.worker == worker and task.token not in unheard]
        held = [fence for i, fence in enumerate(held) if i != forget]
        if stale is not None and self.fences:
            held.append(self._fence(stale))
        self._extend(worker, held, unheard[-1:], late=late)

    def _extend(self, worker: str, held: list[Fence], claims: list[bytes], *, late: int = 0) -> None:
        """`late`: so many claims were made after it was sent."""
        upto = max(0, self.claims - late)
        found = self.store.extend(*held, worker=worker, claims=claims, upto=upto)
        assert found == self.model.extend(worker, held, claims, upto=upto)

    @precondition(lambda self: self.fences)
    @rule(picked=st.lists(st.tuples(picks, verdicts), min_size=1, max_size=3), cut=st.booleans())
    def finish(self, picked: list[tuple[int, str]], cut: bool) -> None:
        ended = [(self._fence(pick), verdict, str(pick).encode() * 200) for pick, verdict in picked]
        for worker in WORKERS:
            self._finish(worker, [row for row in ended if self._worker(row[0]) == worker], cut=cut)

    def _finish(self, worker: str, ended: list[tuple[Fence, str, bytes]], *, cut: bool) -> None:
        rows = [self.store.ended(fence, verdict, stdout=stdout) for fence, verdict, stdout in ended]
        assert self.store.finish(*rows, worker=worker, cut=cut) == self.model.finish(ended)

    @precondition(lambda self: self.fences)
    @rule(picked=st.lists(picks, min_size=1, max_size=3))
    def release(self, picked: list[int]) -> None:
        fences = [self._fence(pick) for pick in picked]
        for worker in WORKERS:
            theirs = [fence for fence in fences if self._worker(fence) == worker]
            assert self.store.release(*theirs, worker=worker) == self.model.release(theirs)

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.model.tasks)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        running = self.model.running()
        task_id = running[0].id if running and pick % 2 else self._task(pick).id
        assert self.store.cancel(task_id) == self.model.cancel(task_id)

    @precondition(lambda self: self.model.tasks)
    @rule(pick=picks)
    def forget(self, pick: int) -> None:
        task_id = self._task(pick).id
        assert self.store.forget(task_id) == self.model.forget(task_id)

    @precondition(lambda self: self.model.tasks)
    @rule(pick=picks)
    def wait(self, pick: int) -> None:
        task_id = self._task(pick).id
        assert self.store.wait(task_id) == self.model.wait(task_id)

    @rule(queue=st.sampled_from(QUEUES), paused=mostly(False, True))
    def pause(self, queue: str, paused: bool) -> None:
        assert self.store.pause(queue, paused) == self.model.pause(queue, paused=paused)

    @precondition(lambda self: any(task.state in TERMINAL for task in self.model.tasks.values()))
    @rule(pick=picks)
    def a_record_has_had_its_time(self, pick: int) -> None:
        ended = [task.id for task in self.model.tasks.values() if task.state in TERMINAL]
        task_id = ended[pick % len(ended)]
        self.store.client.delete(self.store.keys.task(task_id))
        del self.model.tasks[task_id]

    # ── choosing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _task(self, pick: int) -> ModelTask:
        return list(self.model.tasks.values())[pick % len(self.model.tasks)]

    def _fence(self, pick: int) -> Fence:
        """Mostly one that is valid now, else any that ever was."""
        valid = [task.fence for task in self.model.running()]
        choice = valid if valid and pick % 4 else self.fences
        return choice[pick // 4 % len(choice)]

    def _worker(self, fence: Fence) -> str:
        task = self.model.tasks.get(fence.id)
        return task.worker if task else WORKERS[0]

    # ── comparing ───────────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def the_same_was_published(self) -> None:
        wanted, self.model.published = self.model.published, []
        assert sorted(self.listener.heard()) == sorted(wanted)

    @invariant()
    def all_is_the_same(self) -> None:
        view = keyspace.dump(self.store.client, self.store.keys)
        keyspace.check(view, POLICY)
        kept = {kept.member: (kept.order, kept.until) for kept in self.model.kept}
        ended, until = ({member.decode(): int(at) for member, at in index(view, name).items()} for name in OUTPUTS)
        assert {member: (at, until[member]) for member, at in ended.items()} == kept
        assert {key for key in view if key.startswith("task:")} == {f"task:{task_id}" for task_id in self.model.tasks}
        for task in self.model.tasks.values():
            assert shown(view[f"task:{task.id}"]) == expected(task), task.id
        assert in_order(view, "schedule") == [task.id for task in self.model.scheduled()]
        assert [int(float(score)) for score in scores(view, "schedule")] == [
            task.due for task in self.model.scheduled()
        ]
        for queue in QUEUES:
            assert in_order(view, f"ready:{queue}") == [task.id for task in self.model.ready(queue)]
        leases = {task.id: task.lease_end for task in self.model.running()}
        running = zip(in_order(view, "running"), scores(view, "running"), strict=True)
        assert {task_id: int(score) for task_id, score in running} == leases
        names = view["queues"].value if "queues" in view else {}
        assert {name.decode(): paused == b"1" for name, paused in names.items()} == self.model.queues
        counts = {key.removeprefix("counts:"): entry.value for key, entry in view.items() if key.startswith("counts:")}
        made = {name: numbers[b"owner"].decode() for name, numbers in counts.items() if b"owner" in numbers}
        assert made == self.model.makers


OUTPUTS = ("outputs:ended", "outputs:until")


def index(view: keyspace.Dump, key: str) -> dict[bytes, bytes]:
    return view[key].value if key in view else {}


def in_order(view: keyspace.Dump, key: str) -> list[str]:
    return [member.decode() for member in view[key].value] if key in view else []


def scores(view: keyspace.Dump, key: str) -> list[bytes]:
    return list(view[key].value.values()) if key in view else []


def shown(entry: keyspace.Entry) -> dict[str, Any]:
    """A task's hash in the words of the model."""
    text = {name.decode(): value for name, value in entry.value.items()}
    state = State(text["t"].decode())
    plan = codec.unpack_plan(text["p"])
    records = [unpack_raw(value) for name, value in text.items() if name.startswith("attempt:")]
    return {
        "state": state,
        "created": int(text["c"]),
        "due": None if state is State.SCHEDULED else int(text.get("due", plan.start_ms or text["c"])),
        "origin": text["origin"].decode() if "origin" in text else None,
        "owner": text["w"].decode() if "w" in text else None,
        "quota": text["o"].decode() if "o" in text else None,
        "attempt": int(text.get("attempt", 0)),
        "token": text.get("token"),
        "worker": text.get("worker", b"").decode(),
        "claimed": int(text.get("claimed", 0)),
        "failures": int(text.get("failures", 0)),
        "lost": int(text.get("lost", 0)),
        "graced": int(text.get("graced", 0)),
        "cancel": "cancel" in text,
        "watched": "watched" in text,
        "attempts": sorted((ended[0], ended[4].decode()) for ended in records),
        "finished": int(text.get("finished", 0)),
        "reason": text.get("reason", b"").decode(),
        "stdout": text.get("out", b""),
        "dropped": "dropped" in text,
        "spec": text["s"],
        "limits": text.get("k", b"").decode(),
        # Its TTL runs by the server's own clock: a minute is room enough for any run.
        "keep": 0 if entry.ttl_ms < 0 else -(-entry.ttl_ms // 60_000),
    }


def expected(task: ModelTask) -> dict[str, Any]:
    spec = codec.pack_spec(task.spec)
    return {
        "state": task.state,
        "created": task.created,
        "due": None if task.state is State.SCHEDULED else task.due,
        "origin": task.origin,
        "owner": task.owner,
        "quota": task.quota,
        "attempt": task.attempt,
        "token": task.token,
        "worker": task.worker,
        "claimed": task.claimed,
        "failures": task.failures,
        "lost": task.lost,
        "graced": task.graced if task.state is State.RUNNING else 0,
        "cancel": task.cancel,
        "watched": task.watched,
        "attempts": task.attempts,
        "finished": task.finished,
        "reason": task.reason,
        "stdout": task.stdout,
        "dropped": task.dropped,
        "spec": sha1(spec).hexdigest().encode() if task.request_dropped else spec,
        "limits": f"{task.longest or ''}{f' {task.counted}' if task.counted else ''}",
        "keep": -(-task.keep // 60_000),
    }


@pytest.mark.timeout(420)  # a failure is shrunk before it is shown, for up to five minutes
def test_the_store_does_what_the_model_says(server: RedisServer) -> None:
    client = server.client()
    run_state_machine_as_test(
        lambda: StoreMachine(client),  # type: ignore[arg-type]
        settings=settings(
            max_examples=80,
            stateful_step_count=50,
            deadline=None,
            phases=set(Phase) - {Phase.explain},  # it traces each line, and shows nothing of a story
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
