"""A stage with a primary, two replicas and three sentinels instead of one Redis, and what is done to them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import redis

from tests.faults.layout import Fleet, Layout
from tests.faults.machines import Machines
from tests.faults.stage import FaultTestbed
from tests.integration.rig import Daemon
from tests.processes import until
from tests.servers import FAST_REPLICATION, Option, RedisServer, Sentinel, free_port

DOWN_AFTER_MS = 1_000
DURABLE: dict[str, Option] = {"appendonly": "yes", "appendfsync": "always", **FAST_REPLICATION}


class FleetStage(FaultTestbed):
    """`servers` are those of machines 1 to 3, of which the first begins as the primary."""

    def __init__(self, layout: Layout, loads: Mapping[str, float], seed: int, directory: Path) -> None:
        super().__init__(layout, loads, seed, directory)
        assert layout.fleet is not None
        self.fleet: Fleet = layout.fleet
        self.machines = Machines(f"kt{os.getpid() % 100_000}", 3) if self.fleet.parted else None
        self.servers: list[RedisServer] = []
        self.sentinels: list[Sentinel] = []

    def start_stores(self) -> None:
        if self.machines is not None:
            self.machines.open()
        opened: dict[str, Option] = {"bind": "0.0.0.0", "protected_mode": "no"}
        self.redis.options.update({**DURABLE, **opened})
        self.servers = [self.redis]
        self._put(self.redis, 1)
        self.servers += [self.redis.replica(**DURABLE, **opened) for _ in range(2)]
        for machine, server in enumerate(self.servers, 1):
            self._put(server, machine)
            server.options["replica_announce_ip"] = server.host
            server.start()
        for machine in self.fleet.sentinels:
            sentinel = Sentinel(self.redis, quorum=2, down_after_ms=DOWN_AFTER_MS, **opened)
            self._put(sentinel, machine)
            with sentinel._path.open("a") as file:
                file.write(f"sentinel announce-ip {sentinel.host}\n")
            self.sentinels.append(sentinel.start())
        until(self._settled, "three sentinels that know each other, and two replicas in step")

    def _put(self, server: RedisServer, machine: int) -> None:
        if self.machines is not None:
            server.host, server.near = self.machines.address(machine), self.machines.near(machine)
            server.prefix = self.machines.prefix(machine)

    def __exit__(self, *exception: Any) -> None:
        for server in [*self.servers, *self.sentinels]:
            if server.running:
                server.resume()
        super().__exit__(*exception)
        for server in [*self.sentinels, *self.servers[1:]]:
            server.close()
        if self.machines is not None:
            self.machines.close()

    # ── daemons ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def redis_url(self) -> str:
        return f"redis+sentinel://{','.join(sentinel.url for sentinel in self.sentinels)}/{Sentinel.SERVICE}/0"

    def _confirmed(self) -> dict[str, Any]:
        return {"ack": "replicas", "ack_replicas": self.fleet.confirmed_by, "ack_timeout": 1}

    def add_broker(self, *, ready: bool = True, **config: Any) -> Daemon:
        config = {**self._confirmed(), **config}
        if self.machines is not None:
            machine = self.fleet.daemons[len(self.brokers)]
            hosts = [self.machines.near(machine), self.machines.address(machine)]
            for key in ("addr", "wakeup"):
                port = free_port()
                config[key] = [f"{host}:{port}" for host in hosts]
            config["insecure"] = True
        return super().add_broker(ready=ready, **config)

    def add_worker(self, *, ready: bool = True, **config: Any) -> Daemon:
        config = {**self._confirmed(), **config}
        for key, setting in (("broker", "addr"), ("wakeup", "wakeup")):
            lists = [broker.config[setting] for broker in self.brokers]
            config[key] = [each if isinstance(each, str) else each[1] for each in lists]
        return super().add_worker(ready=ready, **config)

    def dress(self, daemon: Daemon) -> None:
        super().dress(daemon)
        if self.machines is not None:
            place = len(self.brokers if daemon.kind == "broker" else self.workers)
            daemon.prefix = self.machines.prefix(self.fleet.daemons[place])

    # ── who is what ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def store(self) -> RedisServer:
        """The primary, as most of the sentinels have it."""
        named = [self._named(sentinel) for sentinel in self.sentinels]
        return max(self.servers, key=lambda server: sum((server.host, server.port) == each for each in named))

    def _named(self, sentinel: Sentinel) -> tuple[str, int] | None:
        asked: Any = sentinel.client(socket_timeout=2.0, decode_responses=True)
        try:
            host, port = asked.sentinel_get_master_addr_by_name(Sentinel.SERVICE)
        except (redis.RedisError, TypeError):
            return None
        return host, int(port)

    def _settled(self) -> bool:
        """All sentinels know each other and name the same primary, whose replicas are in step."""
        try:
            primary = self.store
            info: Any = primary.client(socket_timeout=2.0).info("replication")
            steps = [info.get(f"slave{number}", {}) for number in range(2)]
            asked: list[Any] = [each.client(socket_timeout=2.0, decode_responses=True) for each in self.sentinels]
            others = [each.sentinel_master(Sentinel.SERVICE)["num-other-sentinels"] for each in asked]
        except redis.RedisError:
            return False
        agreed = {self._named(sentinel) for sentinel in self.sentinels} == {(primary.host, primary.port)}
        in_step = all(each.get("state") == "online" and each.get("lag", 9) <= 1 for each in steps)
        return agreed and others == [2, 2, 2] and info["role"] == "master" and in_step

    def heal_stores(self) -> None:
        if self.machines is not None:
            for number in range(1, 4):
                self.machines.move(number, 0)
            for pair in PAIRS:
                self.machines.mend(*pair)
        for server in [*self.servers, *self.sentinels]:
            if server.running:
                server.resume()
            else:
                server.start()
        until(self._settled, "one primary and two replicas", patience_s=60)


PAIRS = ((1, 2), (2, 3), (3, 1))
"""Of machines."""

# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def fleet_of(stage: FaultTestbed) -> FleetStage:
    assert isinstance(stage, FleetStage)
    return stage


def until_moved(stage: FleetStage, former: RedisServer, within_s: float) -> Any:
    """Steps until the sentinels name another primary."""
    ends_s = stage.clock_s() + within_s
    while stage.store is former and stage.clock_s() < ends_s:
        yield 0.1
    stage.expect(stage.store is not former, f"no failover within {within_s:g} s: the case proves nothing")


def follow(server: RedisServer, primary: RedisServer) -> None:
    """Have a former primary copy the new one now; the sentinels would tell it to some ten seconds later."""
    client: Any = server.client(socket_timeout=5.0)
    client.execute_command("REPLICAOF", primary.host, primary.port)


def kill_primary(stage: FaultTestbed, random: Random) -> Any:
    """kill -9 of the primary; another takes over, and it comes back as a replica."""
    fleet = fleet_of(stage)
    former = fleet.store
    with stage.fault("SIGKILL primary"):
        former.kill()
        yield from until_moved(fleet, former, 20)
        yield random.uniform(0, 1)
        former.start()
        follow(former, fleet.store)
        yield 1.0


def stop_primary(stage: FaultTestbed, random: Random) -> Any:
    """SIGSTOP of the primary until after the failover; it goes on believing to be the primary."""
    fleet = fleet_of(stage)
    former = fleet.store
    with stage.fault("SIGSTOP primary"):
        os.kill(former.pid, signal.SIGSTOP)
        yield from until_moved(fleet, former, 20)
        yield random.uniform(1, 2)
        os.kill(former.pid, signal.SIGCONT)
        yield 3.0
        follow(former, fleet.store)
        yield 1.0


def part(*machines: int) -> Any:
    """These machines hear only each other, for longer than a failover takes."""

    def story(stage: FaultTestbed, random: Random) -> Any:
        fleet = fleet_of(stage)
        assert fleet.machines is not None
        former = fleet.store
        with stage.fault(f"machines {', '.join(map(str, machines))} are cut off"):
            for machine in machines:
                fleet.machines.move(machine, 1)
            yield from until_moved(fleet, former, 20)
            yield random.uniform(2, 3)
            for machine in machines:
                fleet.machines.move(machine, 0)
            yield 0.5
            follow(former, fleet.store)
            yield 2.0

    return story


def ring(stage: FaultTestbed, random: Random) -> Any:
    """One pair of machines after the other does not hear each other: each hears most, no two hear the same."""
    fleet = fleet_of(stage)
    assert fleet.machines is not None
    pair = random.choice(PAIRS)
    with stage.fault(f"machines {pair[0]} and {pair[1]} do not hear each other"):
        fleet.machines.deafen(*pair)
        yield random.uniform(4, 8)
        fleet.machines.mend(*pair)
        yield 1.0
        for server in fleet.servers:  # the sentinels would tell a former primary some ten seconds later
            if server is not (primary := fleet.store):
                follow(server, primary)
        yield 2.0


def fail_over(stage: FaultTestbed, random: Random) -> Any:
    """SENTINEL FAILOVER: an operator has another server be the primary."""
    fleet = fleet_of(stage)
    former = fleet.store
    with stage.fault("SENTINEL FAILOVER"):
        asked: Any = random.choice(fleet.sentinels).client()
        try:
            asked.execute_command("SENTINEL", "FAILOVER", Sentinel.SERVICE)
        except redis.ResponseError:  # one is under way
            return
        yield from until_moved(fleet, former, 20)
        yield 1.0


def kill_sentinels(stage: FaultTestbed, random: Random) -> Any:
    """No sentinel is there; what is known goes on."""
    fleet = fleet_of(stage)
    with stage.fault("SIGKILL all sentinels"):
        for sentinel in fleet.sentinels:
            sentinel.kill()
        yield random.uniform(2, 4)
        for sentinel in fleet.sentinels:
            sentinel.start()
        yield 0.5


def kill_replicas(stage: FaultTestbed, random: Random) -> Any:
    """No replica is there: nothing can be confirmed until they are back."""
    fleet = fleet_of(stage)
    replicas = [server for server in fleet.servers if server is not fleet.store]
    with stage.fault("SIGKILL both replicas"):
        for server in replicas:
            server.kill()
        yield random.uniform(2, 4)
        for server in replicas:
            server.start()
        yield 1.0
