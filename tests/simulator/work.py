"""What is asked of them: tasks of all kinds, submitted once or again, cancelled, waited for; how each attempt goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kingtask.client.bulk import Bulk
from kingtask.client.call import Call, SendOnly
from kingtask.errors import NoAnswer, RequestRefused
from kingtask.store import functions
from kingtask.store.functions import Fence
from kingtask.task import TaskSpec
from tests.simulator.cast import Cast
from tests.simulator.client import SimulatedClient
from tests.simulator.ledger import InvariantLedger, Violation
from tests.simulator.processes import AttemptPlan
from tests.simulator.redis import SimulatedRedis
from tests.simulator.world import START_MS, SimulatedWorld


class Work:
    """Begins within `seconds`; after that, `healed`, attempts are short."""

    def __init__(
        self,
        seed: int,
        world: SimulatedWorld,
        redis: SimulatedRedis,
        ledger: InvariantLedger,
        cast: Cast,
        *,
        lease_s: float,
        seconds: float,
    ) -> None:
        self._seed = seed
        self._world = world
        self._random = world.random
        self._redis = redis
        self._ledger = ledger
        self._cast = cast
        self._lease_s = lease_s
        self._seconds = seconds
        self.clients: list[SimulatedClient] = []
        self._runs: dict[Fence, AttemptPlan] = {}
        self._failing: dict[str, float] = {}
        """How likely an attempt of a task is to fail."""
        self._poison: set[str] = set()
        """Tasks that take their worker with them, three times."""
        self.healed = False

    def plan(self) -> None:
        random = self._random
        for number in range(random.choice([2, 4, 8])):
            spec = self._new_spec(number)
            when = random.uniform(0.0, self._seconds * 0.8)
            self._submit_at(when, [spec])
            if random.random() < 0.3:
                self._submit_at(when + random.choice([0.0, 0.001, 1.0, 6.0]), [spec])
            if random.random() < 0.1:
                other = self._registered(_changed(spec, tags=("other",)))
                self._submit_at(when + random.choice([0.0, 1.0]), [other])
            if random.random() < 0.2:
                self._world.after(when + random.uniform(0.0, 4.0), self._ask, "cancel", spec)
            if random.random() < 0.3:
                self._world.after(when + random.uniform(0.0, 2.0), self._ask, "wait", spec)
        if random.random() < 0.3:
            self._submit_at(random.uniform(0.0, 5.0), [self._new_spec(100 + i) for i in range(random.choice([2, 5]))])

    def _new_spec(self, number: int) -> TaskSpec:
        random = self._random
        fields: dict[str, Any] = {
            "id": f"{number:08x}-0000-4000-8000-{self._seed & 0xFFFFFFFFFFFF:012x}",
            "name": "example",
            "queue": random.choice(self._cast.queues),
            "priority": random.choice([5, 5, 1, 9]),
            "retry": tuple(random.choice([0.0, 0.05, 0.5, 2.0]) for _ in range(random.choice([0, 1, 3]))),
            "on_lost": random.choice(["retry", "retry", "fail"]),
        }
        kind = random.random()
        now_s = START_MS / 1000 + self._world.now
        if kind < 0.2:
            fields["delay_s"] = random.choice([0.001, 0.5, 3.0])
        elif kind < 0.4:
            fields["start_at"] = round(now_s + random.uniform(-2.0, self._seconds), 3)
        if random.random() < 0.1:
            fields["expires_at"] = round(
                max(fields.get("start_at", 0.0), now_s + random.uniform(0.0, self._seconds)), 3
            )
        spec = TaskSpec(**fields)
        self._failing[fields["id"]] = random.choice([0.0, 0.0, 0.5, 1.0])
        if random.random() < 0.02:
            self._poison.add(fields["id"])
        return self._registered(spec)

    def _registered(self, spec: TaskSpec) -> TaskSpec:
        assert spec.id is not None
        self._redis.specs[functions.prepare(spec.id, spec).row] = spec
        self._ledger.invoked.setdefault(spec.id, []).append(spec)
        return spec

    def _submit_at(self, when: float, specs: list[TaskSpec]) -> None:
        self._world.after(when, self._submit, specs)

    def _submit(self, specs: list[TaskSpec]) -> None:
        """From one of the clients, which keeps asking or gives up soon."""
        timeout_s, client = self._random.choice([2.0, 10.0, 60.0]), self._random.choice(self.clients)
        if len(specs) > 1:
            _Many(self, client, specs, timeout_s)
            return
        call = Call("submit", {"task": specs[0]}, timeout_s)
        call.owner = specs
        client.start(call)

    def _ask(self, op: str, spec: TaskSpec) -> None:
        fields: dict[str, Any] = {"id": spec.id}
        if op == "wait":
            fields["timeout_s"] = self._random.choice([0.1, 5.0])
        call = Call(op, fields, 20.0, silence_s=10.0)
        call.owner = [spec]
        self._random.choice(self.clients).start(call)

    def done(self, client: SimulatedClient, call: Call) -> None:
        if isinstance(call.owner, _Many):
            call.owner.go_on(call)
            return
        error = call.error
        if call.op != "submit":
            self._world.note(client.name, call.op, _short(call.owner[0]), error or _outcome(call.reply))
        if call.op == "submit":
            (spec,) = call.owner
            self.settled(client.name, spec, call.reply["outcome"] if call.reply else "error", error)
        elif isinstance(error, RequestRefused) and error.code == "internal":
            self._suspect(error)
        elif call.op == "wait" and call.reply is not None:
            task = call.reply["task"]
            self._ledger.result_seen(task["id"], task["state"])
        elif call.op == "cancel" and call.reply is not None and call.reply["outcome"] == "cancelled":
            self._ledger.result_seen(call.reply["id"], "cancelled")

    @property
    def now(self) -> float:
        return self._world.now

    def settled(self, client: str, spec: TaskSpec, outcome: str, error: Exception | None) -> None:
        """A client knows what has become of a task that it submitted."""
        self._world.note(client, "submit", _short(spec), error or outcome)
        if error is not None:
            self._refused(spec, error)
        else:
            assert spec.id is not None
            self._ledger.maybe_stored.add(spec.id)
            self._ledger.acknowledge(spec, outcome)

    def _refused(self, spec: TaskSpec, error: Any) -> None:
        assert spec.id is not None
        assert isinstance(error, RequestRefused | NoAnswer)
        code = getattr(error, "code", "")
        if code == "internal":
            self._suspect(error)
        unique = len(self._ledger.invoked[spec.id]) == 1
        if code in ("malformed", "invalid_request") or (code == "id_conflict" and unique):
            raise Violation(f"{spec.id[:8]} was refused: {error}")
        if error.stored != "no" or code == "id_conflict":
            self._ledger.maybe_stored.add(spec.id)
        if self._random.random() < 0.5 and code != "id_conflict":
            self._submit_at(self._random.uniform(0.0, 3.0), [spec])

    def _suspect(self, error: Exception) -> None:
        if "refused" not in str(error):  # what Redis said is passed on
            raise Violation(f"a broker could not cope: {error}")

    def run_of(self, fence: Fence) -> AttemptPlan:
        random = self._random
        if fence not in self._runs:
            seconds = 0.01 if self.healed else random.choice([0.005, 0.05, 0.5, 2.0, 1.5 * self._lease_s])
            status = 0
            if random.random() < self._failing[fence.id]:
                status = random.choice([1, 1, 1, -9, 100])
            deadly = fence.id in self._poison and fence.number <= 3
            self._runs[fence] = AttemptPlan(seconds, status, obstinate=random.random() < 0.3, deadly=deadly)
        return self._runs[fence]


class _Many:
    """A bulk submit: the product's plan for it, and what to do with its calls."""

    def __init__(self, work: Work, client: SimulatedClient, specs: list[TaskSpec], timeout_s: float) -> None:
        self._work = work
        self._client = client
        self._specs = specs
        bulk: Bulk[Any] = Bulk(timeout_s, lambda: work.now, lambda _id, _name: None)
        self._plan = bulk.submit(specs)
        self._start(lambda: next(self._plan))

    def go_on(self, call: Call) -> None:
        self._start(lambda: self._plan.send((call,)))

    def _start(self, step: Callable[[], Any]) -> None:
        try:
            starting = step()
            while isinstance(starting, SendOnly):
                self._begin(starting)
                starting = self._plan.send(())
        except StopIteration as end:
            for spec, found in zip(self._specs, end.value, strict=True):
                self._work.settled(self._client.name, spec, found.outcome, found.error)
            return
        self._begin(starting)

    def _begin(self, calls: Sequence[Call]) -> None:
        for call in calls:
            call.owner = self
            self._client.start(call)


def _outcome(reply: Any) -> Any:
    return reply.get("outcome") or reply.get("task", {}).get("state")


def _short(spec: TaskSpec) -> str:
    assert spec.id is not None
    return spec.id[:8]


def _changed(spec: TaskSpec, **fields: Any) -> TaskSpec:
    return TaskSpec(**{name: getattr(spec, name) for name in spec.__struct_fields__} | fields)
