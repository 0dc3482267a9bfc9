"""One seed, one story: who there is, what is asked of them, what befalls them; then all is healed and must drain."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from kingtask import protocol
from kingtask.client.bulk import Bulk
from kingtask.client.call import Call
from kingtask.config import BrokerConfig, WorkerConfig
from kingtask.errors import NoAnswer, RequestRefused
from kingtask.store import calls
from kingtask.store.calls import Fence, Policy
from kingtask.task import TERMINAL, TaskSpec
from tests.simulator.client import Client, Switchboard
from tests.simulator.faults import Faults
from tests.simulator.ledger import Ledger, Violation
from tests.simulator.links import Surroundings
from tests.simulator.processes import HostedBroker, HostedWorker, Plant, Run, replaced
from tests.simulator.redis import Redis, Replica
from tests.simulator.world import START_MS, Loop, World
from tests.store.model import Model

TROUBLE_S = 8.0
"""How long things go wrong."""
DRAIN_S = 90.0
"""By when all must have ended after that: a lease or two, the retries, the patience of clients."""
CHECK_S = 0.25


class Story:
    """Everything in it is drawn from the seed; `run` raises Violation."""

    def __init__(self, seed: int, *, model: type[Model] = Model) -> None:
        self.seed = seed
        self.world = world = World(seed)
        self._random = random = world.random
        self._lease_s = random.choice([1.5, 3.0, 3.0, 15.0])
        policy = Policy(lease_ms=round(self._lease_s * 1000), max_lost=random.choice([1, 3, 3]))
        self._max_lost = policy.max_lost
        self.ledger = Ledger(policy)
        self._faults = Faults(random, self._lease_s)
        replica = Replica(self._faults.latency) if random.random() < 0.25 else None
        self._redis = Redis(world, policy, self.ledger, model, replica)
        at = Surroundings(self._redis, self._faults, random.choice([self._lease_s / 3, 5.0]))
        self._switchboard = Switchboard(world, self._faults)
        self._runs: dict[Fence, Run] = {}
        self._plant = Plant(world, at, self._run_of, self._switchboard.reply, self._wakeup, self._die, self.ledger)
        self._failing: dict[str, float] = {}
        """How likely an attempt of a task is to fail."""
        self._poison: set[str] = set()
        """Tasks that take their worker with them, three times."""
        self._brokers: list[HostedBroker | None] = [None] * random.choice([1, 2, 2, 3])
        self._workers: list[HostedWorker | None] = [None] * random.choice([1, 2, 2, 3])
        self._names = 0
        self._queues = ["default", "other"][: random.choice([1, 2])]
        self._clients = [self._new_client(i) for i in range(random.choice([1, 2]))]
        self._specs: list[TaskSpec] = []
        self._healed = False

    def run(self) -> None:
        """Raises Violation; the trace is in `world`."""
        with replaced(self._plant), _silent():
            try:
                self._tell()
            finally:
                for process in [*self._brokers, *self._workers]:
                    if process is not None:
                        process.loop.kill()

    def _tell(self) -> None:
        world, random = self.world, self._random
        for i in range(len(self._brokers)):
            world.after(0.0, self._start_broker, i)
        for i in range(len(self._workers)):
            world.after(random.choice([0.0, 0.1, 2.0]), self._start_worker, i)
        self._plan_work()
        self._plan_trouble()
        world.run(world.now + TROUBLE_S)
        self._heal()
        until = world.now + DRAIN_S
        while not self._at_rest:
            if world.now >= until:
                raise Violation(f"not drained {DRAIN_S:g} s after all was healed: {self._left()}")
            world.run(world.now + CHECK_S)
        self.ledger.close()

    # ── work ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan_work(self) -> None:
        random = self._random
        for number in range(random.choice([2, 4, 8])):
            spec = self._new_spec(number)
            self._specs.append(spec)
            when = random.uniform(0.0, TROUBLE_S * 0.8)
            self._submit_at(when, [spec])
            if random.random() < 0.3:
                self._submit_at(when + random.choice([0.0, 0.001, 1.0, 6.0]), [spec])
            if random.random() < 0.1:
                other = self._registered(_changed(spec, tags=("other",)))
                self._submit_at(when + random.choice([0.0, 1.0]), [other])
            if random.random() < 0.2:
                self._at(when + random.uniform(0.0, 4.0), self._ask, "cancel", spec)
            if random.random() < 0.3:
                self._at(when + random.uniform(0.0, 2.0), self._ask, "wait", spec)
        if random.random() < 0.3:
            self._submit_at(random.uniform(0.0, 5.0), [self._new_spec(100 + i) for i in range(random.choice([2, 5]))])

    def _new_spec(self, number: int) -> TaskSpec:
        random = self._random
        fields: dict[str, Any] = {
            "id": f"{number:08x}-0000-4000-8000-{self.seed & 0xFFFFFFFFFFFF:012x}",
            "name": "example",
            "queue": random.choice(self._queues),
            "priority": random.choice([5, 5, 1, 9]),
            "retry": tuple(random.choice([0.0, 0.05, 0.5, 2.0]) for _ in range(random.choice([0, 1, 3]))),
            "on_lost": random.choice(["retry", "retry", "fail"]),
        }
        kind = random.random()
        now_s = START_MS / 1000 + self.world.now
        if kind < 0.2:
            fields["delay_s"] = random.choice([0.001, 0.5, 3.0])
        elif kind < 0.4:
            fields["start_at"] = round(now_s + random.uniform(-2.0, TROUBLE_S), 3)
        if random.random() < 0.1:
            fields["expires_at"] = round(max(fields.get("start_at", 0.0), now_s + random.uniform(0.0, TROUBLE_S)), 3)
        spec = TaskSpec(**fields)
        self._failing[fields["id"]] = random.choice([0.0, 0.0, 0.5, 1.0])
        if random.random() < 0.02:
            self._poison.add(fields["id"])
        return self._registered(spec)

    def _registered(self, spec: TaskSpec) -> TaskSpec:
        assert spec.id is not None
        self._redis.specs[tuple(calls.prepare(spec.id, spec))] = spec
        self.ledger.invoked.setdefault(spec.id, []).append(spec)
        return spec

    def _submit_at(self, when: float, specs: list[TaskSpec]) -> None:
        self._at(when, self._submit, specs)

    def _at(self, after: float, act: Callable[..., None], *args: Any) -> None:
        self.world.after(after, act, *args)

    def _submit(self, specs: list[TaskSpec]) -> None:
        """From one of the clients, which keeps asking or gives up soon."""
        timeout_s, client = self._random.choice([2.0, 10.0, 60.0]), self._random.choice(self._clients)
        if len(specs) > 1:
            _Many(self, client, specs, timeout_s)
            return
        call = Call("submit", {"task": protocol.task_fields(specs[0])}, timeout_s)
        call.owner = specs
        client.start(call)

    def _ask(self, op: str, spec: TaskSpec) -> None:
        fields: dict[str, Any] = {"id": spec.id}
        if op == "wait":
            fields["timeout_s"] = self._random.choice([0.1, 5.0])
        call = Call(op, fields, 20.0, answer_s=fields.get("timeout_s", 0.0), silence_s=10.0)
        call.owner = [spec]
        self._random.choice(self._clients).start(call)

    def _done(self, client: Client, call: Call) -> None:
        if isinstance(call.owner, _Many):
            call.owner.go_on(call)
            return
        error = call.error
        if call.op != "submit":
            self.world.note(client.name, call.op, _short(call.owner[0]), error or _outcome(call.reply))
        if call.op == "submit":
            (spec,) = call.owner
            self.settled(client.name, spec, call.reply["outcome"] if call.reply else "error", error)
        elif isinstance(error, RequestRefused) and error.code == "internal":
            self._suspect(error)
        elif call.op == "wait" and call.reply is not None:
            task = call.reply["task"]
            self.ledger.result_seen(task["id"], task["state"])
        elif call.op == "cancel" and call.reply is not None and call.reply["outcome"] == "cancelled":
            self.ledger.result_seen(call.reply["id"], "cancelled")

    def settled(self, client: str, spec: TaskSpec, outcome: str, error: Exception | None) -> None:
        """A client knows what has become of a task that it submitted."""
        self.world.note(client, "submit", _short(spec), error or outcome)
        if error is not None:
            self._refused(spec, error)
        else:
            assert spec.id is not None
            self.ledger.maybe_stored.add(spec.id)
            self.ledger.acknowledge(spec, outcome)

    def _refused(self, spec: TaskSpec, error: Any) -> None:
        assert spec.id is not None
        assert isinstance(error, RequestRefused | NoAnswer)
        code = getattr(error, "code", "")
        if code == "internal":
            self._suspect(error)
        unique = len(self.ledger.invoked[spec.id]) == 1
        if code in ("malformed", "invalid_request") or (code == "id_conflict" and unique):
            raise Violation(f"{spec.id[:8]} was refused: {error}")
        if error.stored != "no" or code == "id_conflict":
            self.ledger.maybe_stored.add(spec.id)
        if self._random.random() < 0.5 and code != "id_conflict":
            self._submit_at(self._random.uniform(0.0, 3.0), [spec])

    def _suspect(self, error: Exception) -> None:
        if "refused" not in str(error):  # what Redis said is passed on
            raise Violation(f"a broker could not cope: {error}")

    def _run_of(self, fence: Fence) -> Run:
        random = self._random
        if fence not in self._runs:
            seconds = 0.01 if self._healed else random.choice([0.005, 0.05, 0.5, 2.0, 1.5 * self._lease_s])
            status = 0
            if random.random() < self._failing[fence.id]:
                status = random.choice([1, 1, 1, -9, 100])
            deadly = fence.id in self._poison and fence.number <= 3
            self._runs[fence] = Run(seconds, status, obstinate=random.random() < 0.3, deadly=deadly)
        return self._runs[fence]

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _new_client(self, number: int) -> Client:
        addresses = len(self._brokers)
        client = Client(self.world, self._faults, f"client{number}", addresses, lambda i: self._brokers[i], self._done)
        self._switchboard.clients[client.name.encode()] = client
        return client

    def _new_loop(self, what: str) -> Loop:
        self._names += 1
        return Loop(self.world, f"{what}{self._names}")

    def _start_broker(self, i: int) -> None:
        if self._brokers[i] is None:
            loop = self._new_loop("broker")
            config = BrokerConfig(lease=self._lease_s, max_lost=self._max_lost)
            loop.call_soon(self._run_broker, i, config, loop)

    def _run_broker(self, i: int, config: BrokerConfig, loop: Loop) -> None:
        broker = HostedBroker(config, loop)
        self._brokers[i] = broker
        loop.start(broker.start())

    def _start_worker(self, i: int) -> None:
        if self._workers[i] is None:
            loop = self._new_loop("worker")
            config = WorkerConfig(
                bin_path=("/",),
                lease=self._lease_s,
                renew=self._lease_s / 3,
                max_lost=self._max_lost,
                concurrency=self._random.choice([1, 2, 4]),
                queues=tuple(self._queues),
                period=self._random.choice([0.3, 1.0]),
                drain_timeout=self._random.choice([0.5, 3.0]),
                kill_grace=0.3,
            )
            loop.call_soon(self._run_worker, i, config, loop)

    def _run_worker(self, i: int, config: WorkerConfig, loop: Loop) -> None:
        worker = HostedWorker(config, loop.name, loop)
        self._workers[i] = worker
        task = loop.start(worker.worker.serve())
        task.add_done_callback(lambda task: self._left_by_itself(i, worker, task))

    def _left_by_itself(self, i: int, worker: HostedWorker, task: Any) -> None:
        """After SIGTERM."""
        task.result()
        self.world.note(worker.name, "left")
        worker.loop.kill()
        self._workers[i] = None
        self.world.after(self._random.uniform(0.0, 2.0), self._start_worker, i)

    def _wakeup(self, _broker: Loop, topic: str, task_id: str) -> None:
        for worker in self._workers:
            if worker is None or worker.loop.subscriber is None:
                continue
            for delay in self._faults.hints():
                if not topic.startswith("cancel:"):
                    worker.loop.call_later(delay, worker.loop.subscriber.on_ready)
                elif topic == f"cancel:{worker.name}":
                    worker.loop.call_later(delay, worker.loop.subscriber.on_cancel, task_id)

    # ── trouble ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan_trouble(self) -> None:
        random = self._random
        kinds: list[Callable[[], None]] = [
            self._kill_broker,
            self._drain_broker,
            self._stop_broker,
            self._kill_worker,
            self._stop_worker,
            self._drain_worker,
            self._redis_outage,
            self._redis_hangs,
            self._cut_off,
            self._reset_connections,
            self._clock_jump,
        ]
        if self._redis.replica is not None:
            for _ in range(random.choice([0, 1, 1, 2])):
                self._at(random.uniform(0.1, TROUBLE_S), self._cut_off_primary)
        some = random.sample(kinds, random.choice([0, 1, 2, 3, len(kinds)]))
        for _ in range(random.choice([1, 3, 8]) if some else 0):
            self._at(random.uniform(0.1, TROUBLE_S), random.choice(some))

    def _some(self, processes: list[Any]) -> Any:
        alive = [process for process in processes if process is not None]
        return self._random.choice(alive) if alive else None

    def _kill_broker(self) -> None:
        broker = self._some(self._brokers)
        if broker is not None and not self._healed:
            self._remove_broker(broker)

    def _remove_broker(self, broker: HostedBroker) -> None:
        self.world.note(broker.loop.name, "gone")
        i = self._brokers.index(broker)
        broker.loop.kill()
        self._brokers[i] = None
        for client in self._clients:
            client.gone(broker)
        self._at(self._random.uniform(0.0, 3.0), self._start_broker, i)

    def _kill_worker(self) -> None:
        worker = self._some(self._workers)
        if worker is not None and not self._healed:
            self._die(worker.loop)

    def _die(self, loop: Loop) -> None:
        """A worker, and what it runs."""
        self.world.note(loop.name, "killed")
        loop.kill()
        for i, worker in enumerate(self._workers):
            if worker is not None and worker.loop is loop:
                self._workers[i] = None
                self._at(self._random.uniform(0.0, 3.0), self._start_worker, i)

    def _drain_broker(self) -> None:
        """SIGTERM."""
        broker = self._some(self._brokers)
        if broker is not None and broker.edge.open and not broker.draining and not self._healed:
            self.world.note(broker.loop.name, "SIGTERM")
            broker.loop.call_soon(self._stop_by_itself, broker)

    def _stop_by_itself(self, broker: HostedBroker) -> None:
        def stopped(task: Any) -> None:
            task.result()
            self._remove_broker(broker)

        broker.loop.start(broker.stop()).add_done_callback(stopped)

    def _stop_broker(self) -> None:
        self._stop(self._some(self._brokers))

    def _stop_worker(self) -> None:
        self._stop(self._some(self._workers))

    def _stop(self, process: Any) -> None:
        if process is not None and not self._healed:
            self.world.note(process.loop.name, "stopped")
            process.loop.stop_process()
            self._at(self._random.uniform(0.1, 2.0) * self._lease_s, self._resume, process.loop)

    def _resume(self, loop: Loop) -> None:
        if loop.stopped:
            self.world.note(loop.name, "goes on")
            loop.resume()

    def _drain_worker(self) -> None:
        worker = self._some(self._workers)
        if worker is not None and signal.SIGTERM in worker.loop.signals and not self._healed:
            self.world.note(worker.name, "SIGTERM")
            for _ in range(self._random.choice([1, 1, 2, 3])):
                worker.loop.call_soon(worker.loop.signals[signal.SIGTERM])

    def _redis_outage(self) -> None:
        if self._redis.up and not self._healed:
            self._redis.go_down()
            self._at(self._random.choice([0.3, 2.0, 4.0]), self._redis.come_back)

    def _cut_off_primary(self) -> None:
        """From its replica, for a while; after that all is well again, or the replica has taken over."""
        replica, random = self._redis.replica, self._random
        if replica is not None and not self._healed:
            self.world.note("replica", "stalls")
            seconds = random.choice([0.05, 0.5, 3.0])
            replica.stall(self.world.now + seconds + 0.001)
            if random.random() < 0.7:
                self._at(seconds, self._fail_over)

    def _fail_over(self) -> None:
        if self._redis.up and not self._healed:
            self._redis.fail_over()
            self._at(self._random.choice([0.3, 2.0]), self._redis.come_back)

    def _redis_hangs(self) -> None:
        if self._redis.serves and not self._healed:
            self._redis.hang()
            self._at(self._random.uniform(0.1, 2.0) * self._lease_s, self._unhang)

    def _unhang(self) -> None:
        if self._redis.hung:
            self._redis.go_on()

    def _cut_off(self) -> None:
        process = self._some([*self._brokers, *self._workers])
        if process is not None and not self._healed:
            self.world.note(process.loop.name, "cut off")
            self._faults.cut(process.loop)
            self._at(self._random.uniform(0.1, 2.0) * self._lease_s, partial(self._faults.mend, process.loop))

    def _reset_connections(self) -> None:
        process = self._some([*self._brokers, *self._workers])
        if process is not None:
            process.store.reset()

    def _clock_jump(self) -> None:
        if not self._healed:
            self._redis.jump(self._random.choice([-5000, -50, 50, 2000, 5000]))

    def _heal(self) -> None:
        self.world.note("world", "healed")
        self._healed = True
        self._faults.heal()
        if self._redis.hung:
            self._redis.go_on()
        for process in [*self._brokers, *self._workers]:
            if process is not None:
                self._resume(process.loop)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _at_rest(self) -> bool:
        return self.ledger.drained and not any(self._busy())

    def _busy(self) -> Iterator[bool]:
        yield any(client.pending for client in self._clients)
        yield any(worker is None or not worker.idle for worker in self._workers)
        yield any(broker is None or broker.occupied > 0 for broker in self._brokers)

    def _left(self) -> str:
        living = [task for task in self._redis.model.tasks.values() if task.state not in TERMINAL]
        clients, workers, brokers = self._busy()
        return f"{[(t.id[:8], t.state.value) for t in living]}, busy {clients=} {workers=} {brokers=}"


class _Many:
    """A bulk submit: the product's plan for it, and what to do with its calls."""

    def __init__(self, story: Story, client: Client, specs: list[TaskSpec], timeout_s: float) -> None:
        self._story = story
        self._client = client
        self._specs = specs
        bulk: Bulk[Any] = Bulk(timeout_s, lambda: story.world.now, lambda _id, _name: None)
        self._plan = bulk.submit([protocol.task_fields(spec) for spec in specs])
        self._start(lambda: next(self._plan))

    def go_on(self, call: Call) -> None:
        self._start(lambda: self._plan.send((call,)))

    def _start(self, step: Callable[[], Any]) -> None:
        try:
            starting = step()
        except StopIteration as end:
            for spec, found in zip(self._specs, end.value, strict=True):
                self._story.settled(self._client.name, spec, found.outcome, found.error)
            return
        for call in starting:
            call.owner = self
            self._client.start(call)


def _outcome(reply: Any) -> Any:
    return reply.get("outcome") or reply.get("task", {}).get("state")


def _short(spec: TaskSpec) -> str:
    assert spec.id is not None
    return spec.id[:8]


def _changed(spec: TaskSpec, **fields: Any) -> TaskSpec:
    return TaskSpec(**{name: getattr(spec, name) for name in spec.__struct_fields__} | fields)


@contextmanager
def _silent() -> Iterator[None]:
    """The daemons log every fault."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
