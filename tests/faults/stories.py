"""Faults as small stories: each does one thing to a stage, yields how long to wait, and takes it back.

A yield gives the seconds until it goes on. What hits a process first says which, so that nobody expects it to answer.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, cast

import hiredis
import redis

from kingtask.failpoint import VARIABLE
from tests.faults.history import Op, read
from tests.faults.play import TICK_S, FaultStory, Steps
from tests.faults.stage import FaultTestbed
from tests.integration.rig import Daemon
from tests.servers import free_port

Choice = Callable[[FaultTestbed, Random], Daemon]
"""Which process is hit."""


def a_broker(stage: FaultTestbed, random: Random) -> Daemon:
    return random.choice(stage.brokers)


def a_worker(stage: FaultTestbed, random: Random) -> Daemon:
    return random.choice(stage.workers)


def first_broker(stage: FaultTestbed, random: Random) -> Daemon:
    return stage.brokers[0]


def first_worker(stage: FaultTestbed, random: Random) -> Daemon:
    return stage.workers[0]


def running(daemon: Daemon) -> bool:
    return daemon.process is not None and daemon.process.poll() is None


def back(stage: FaultTestbed, daemon: Daemon) -> Steps:
    """Start it, and wait until it says so in its log."""
    seen = daemon.text().count("=started ")
    daemon.start(ready=False)
    while running(daemon) and daemon.text().count("=started ") == seen:
        yield TICK_S


def kill(which: Choice, down_s: tuple[float, float] = (0.0, 3.0), number: int = signal.SIGKILL) -> FaultStory:
    """End a process and start it again."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        daemon = which(stage, random)
        if not running(daemon):  # something else has it down
            return
        name = stage.name(daemon)
        with stage.fault(f"{signal.Signals(number).name} {name}"), stage.away(name):
            stage.kill(daemon, number)
            yield random.uniform(*down_s)
            yield from back(stage, daemon)

    return story


def stop(which: Choice, for_s: tuple[float, float]) -> FaultStory:
    """SIGSTOP, SIGCONT."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        daemon = which(stage, random)
        if not running(daemon):
            return
        name, pid = stage.name(daemon), daemon.pid
        with stage.fault(f"SIGSTOP {name}"), stage.away(name):
            os.kill(pid, signal.SIGSTOP)
            try:
                yield random.uniform(*for_s)
            finally:
                if running(daemon) and daemon.pid == pid:
                    os.kill(pid, signal.SIGCONT)

    return story


def failpoint(which: Choice, places: tuple[str, ...], nth: tuple[int, int], times: int) -> FaultStory:
    """Have a process die at one of these places, again and again; it is started again at once."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        daemon = which(stage, random)
        name = stage.name(daemon)
        what = f"SIGKILL {name}"
        stage.mortal.add(daemon)
        for _ in range(times):
            place = random.choice(places)
            daemon.environment = {VARIABLE: f"{place}=kill:{random.randint(*nth)}"}
            with stage.fault(what), stage.away(name):
                stage.kill(daemon)
                yield from back(stage, daemon)
            while running(daemon) and not stage.over:
                yield TICK_S
            if stage.over:
                break
            what = f"{place} {name}"
        daemon.environment = stage.environment
        with stage.fault(f"SIGKILL {name}"), stage.away(name):
            stage.kill(daemon)
            stage.mortal.discard(daemon)
            yield from back(stage, daemon)

    return story


def redis_kill(down_s: tuple[float, float] = (0.0, 2.0)) -> FaultStory:
    """kill -9 of Redis, and a start on the data that are on disk."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        while not stage.redis.running:
            yield TICK_S
        with stage.fault("SIGKILL redis"):
            stage.redis.kill()
            yield random.uniform(*down_s)
            stage.redis.start()

    return story


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def redis_sleep(for_s: tuple[float, float]) -> FaultStory:
    """It answers nobody for a while (DEBUG SLEEP)."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        while not stage.redis.running:  # another fault has it down
            yield TICK_S
        seconds = random.uniform(*for_s)
        with stage.fault(f"redis sleeps {seconds:.1f} s"), raw(stage) as line:
            line.sendall(command("DEBUG", "SLEEP", f"{seconds:.2f}"))
            yield seconds

    return story


def redis_pause(for_s: float, what: str = "WRITE") -> FaultStory:
    """CLIENT PAUSE: commands wait, and are executed afterwards."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        while not stage.redis.running:  # another fault has it down
            yield TICK_S
        with stage.fault(f"redis pauses ({what}) {for_s:g} s"), raw(stage) as line:
            line.sendall(command("CLIENT", "PAUSE", str(round(for_s * 1000)), what))
            yield for_s

    return story


def redis_busy(for_s: float) -> FaultStory:
    """A script that does not end: every other command is answered BUSY."""
    script = (
        "local t = redis.call('TIME') local start = t[1] * 1000 + t[2] / 1000 "
        "repeat t = redis.call('TIME') until t[1] * 1000 + t[2] / 1000 > start + ARGV[1] return 1"
    )

    def story(stage: FaultTestbed, random: Random) -> Steps:
        while not stage.redis.running:  # another fault has it down
            yield TICK_S
        with stage.fault(f"redis is busy {for_s:g} s"), raw(stage) as line:
            line.sendall(command("CONFIG", "SET", "busy-reply-threshold", "100"))
            line.sendall(command("EVAL", script, "0", str(round(for_s * 1000))))
            yield for_s

    return story


def redis_tell(what: str, *words: str) -> FaultStory:
    """One command, such as CLIENT KILL TYPE normal or FUNCTION FLUSH."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        while not stage.redis.running:  # another fault has it down
            yield TICK_S
        with stage.fault(what), raw(stage) as line:
            line.sendall(command(*words))
            yield 0.1

    return story


@contextmanager
def raw(stage: FaultTestbed) -> Iterator[socket.socket]:
    """A connection that need not wait for answers."""
    with socket.create_connection(("127.0.0.1", stage.redis.port), 5) as connection:
        yield connection


def command(*words: str) -> bytes:
    packed: bytes = hiredis.pack_command(cast("Any", words))
    return packed


# ── the network ─────────────────────────────────────────────────────────────────────────────────────────────────────


def cut(kinds: tuple[str, ...], for_s: tuple[float, float], ways: tuple[str, ...] = ("both",)) -> FaultStory:
    """A cable is out for a while: one link whose name begins so, or the only way back or forth."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        link = random.choice([link for link in stage.proxy.links if link.startswith(kinds)])
        way = random.choice(ways)
        with stage.fault(f"cut {link} {way}"):
            stage.proxy.set(link, **{way: {"hole": True}})
            yield random.uniform(*for_s)
            stage.proxy.mend(link)

    return story


def spoil(kinds: tuple[str, ...], for_s: tuple[float, float], **way: float) -> FaultStory:
    """All links whose names begin so are bad in one manner (the fields of proxy.Way)."""
    told = " ".join(f"{name}={value:g}" for name, value in way.items())

    def story(stage: FaultTestbed, random: Random) -> Steps:
        links = [link for link in stage.proxy.links if link.startswith(kinds)]
        with stage.fault(f"{told} on {kinds[0]}"):
            for link in links:
                stage.proxy.set(link, both=way)
            yield random.uniform(*for_s)
            for link in links:
                stage.proxy.mend(link)

    return story


# ── brokers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def end_in_order(which: Choice, within_s: float) -> FaultStory:
    """SIGTERM: it ends with status 0 in time, and is started again."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        daemon = which(stage, random)
        if not running(daemon):
            return
        name = stage.name(daemon)
        with stage.fault(f"SIGTERM {name}"), stage.away(name):
            began_s = stage.clock_s()
            stage.kill(daemon, signal.SIGTERM)
            took_s = stage.clock_s() - began_s
            stage.expect(took_s <= within_s, f"{name} took {took_s:.1f} s to end")
            yield random.uniform(0, 1)
            yield from back(stage, daemon)

    return story


def all_brokers_away(stage: FaultTestbed, random: Random) -> Steps:
    """Every broker is killed before many tasks fall due, and started after it: each is there within five seconds."""
    yield 3.0
    names = [stage.name(broker) for broker in stage.brokers]
    with stage.fault("SIGKILL all brokers"), stage.away(*names):
        for broker in stage.brokers:
            stage.kill(broker)
        yield 4.0
        began_s = stage.clock_s()
        for broker in stage.brokers:
            yield from back(stage, broker)
        took_s = stage.clock_s() - began_s
        stage.expect(took_s <= 5 * len(names), f"{len(names)} brokers took {took_s:.1f} s to start")


def broker_twice(stage: FaultTestbed, random: Random) -> Steps:
    """Start a second broker on the first one's address."""
    first = stage.brokers[0]
    second = Daemon(stage, "broker", {**first.config, "wakeup": f"127.0.0.1:{free_port()}"})
    with stage.fault("a second broker 1"):
        second.start(ready=False)
        assert second.process is not None
        while second.process.poll() is None:
            yield TICK_S
    status, told = second.process.returncode, second.text()
    stage.expect(status == 3 and "it is in use" in told, f"a second broker ended with {status}: {told[-500:]}")


def no_client_saw_an_error(stage: FaultTestbed) -> None:
    """Within its deadline every call of every client had a good answer."""
    errors = Counter(
        f"{op.f} {op.code}"
        for path in stage.histories.glob("client-*.jsonl")
        for op in read(path, Op)
        if op.type in ("fail", "info") and op.code not in ("wrong_state", "ResultTimeout")
    )
    stage.expect(not errors, f"clients saw errors: {dict(errors)}")


# ── a Redis that is full, slow to start, or set up wrongly ──────────────────────────────────────────────────────────


def redis_full(for_s: float) -> FaultStory:
    """`maxmemory` is reached: submits are refused, what is there drains."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        server: Any = stage.primary()
        with stage.fault("redis is full"):
            server.config_set("maxmemory", int(server.info("memory")["used_memory"]) + 100_000)
            yield for_s
            server.config_set("maxmemory", 0)

    return story


def some_refused(code: str) -> Callable[[FaultTestbed], None]:
    """A check: some client was refused for this reason."""

    def check(stage: FaultTestbed) -> None:
        found = sum(op.code == code for path in stage.histories.glob("client-*.jsonl") for op in read(path, Op))
        stage.expect(found > 0, f"nobody was refused with {code}: the case proves nothing")

    return check


def redis_loading(stage: FaultTestbed, random: Random) -> Steps:
    """It is killed, needs seconds to load what it has, and answers LOADING meanwhile."""
    server: Any = stage.primary()
    server.bgrewriteaof()
    while server.info("persistence")["aof_rewrite_in_progress"] or server.info("persistence")["aof_rewrite_scheduled"]:
        yield TICK_S
    slow_us = round(LOADING_S * 1e6 / max(1, int(server.dbsize())))
    slow = {"key_load_delay": slow_us, "loading_process_events_interval_bytes": 1024}
    with stage.fault("redis loads"):
        stage.redis.kill()
        ordinary = dict(stage.redis.options)
        stage.redis.options.update(slow)
        stage.redis.start(ready=False)
        stage.redis.options = ordinary
        seen = False
        while True:
            try:
                stage.primary().ping()
                break
            except redis.BusyLoadingError:
                seen = True
            except redis.RedisError:  # not listening yet
                pass
            yield TICK_S
        stage.expect(seen, "Redis never said LOADING: the case proves nothing")


LOADING_S = 3.0


def everything_starts_while_redis_loads(stage: FaultTestbed, random: Random) -> Steps:
    """All brokers and workers are started anew while it loads; nobody gives up."""
    names = [stage.name(daemon) for daemon in stage.daemons]
    loading = redis_loading(stage, random)
    yield 2.0
    for pause_s in loading:
        if not stage.redis.running or names == []:
            yield pause_s
            continue
        with stage.fault("SIGKILL everybody"), stage.away(*names):
            for daemon in random.sample(stage.daemons, len(stage.daemons)):
                stage.kill(daemon)
                daemon.start(ready=False)
            yield from loading
            for daemon in stage.daemons:
                daemon.wait_ready()
        return


def redis_would_evict(stage: FaultTestbed, random: Random) -> Steps:
    """A broker refuses a server that throws keys away when it is full."""
    server: Any = stage.primary()
    first = stage.brokers[0]
    with stage.fault("maxmemory-policy allkeys-lru"):
        server.config_set("maxmemory", 100_000_000)
        server.config_set("maxmemory-policy", "allkeys-lru")
        config = {"addr": f"127.0.0.1:{free_port()}", "wakeup": f"127.0.0.1:{free_port()}"}
        third = Daemon(stage, "broker", {**first.config, **config})
        third.start(ready=False)
        assert third.process is not None
        while third.process.poll() is None:
            yield TICK_S
        server.config_set("maxmemory-policy", "noeviction")
        server.config_set("maxmemory", 0)
    status, told = third.process.returncode, third.text()
    stage.expect(status == 3 and "set it to noeviction" in told, f"it ended with {status}: {told[-500:]}")


def rolling_restart(stage: FaultTestbed, random: Random) -> Steps:
    """Every process in turn is ended in good order and started again, Redis too."""
    for daemon in stage.daemons:
        name = stage.name(daemon)
        with stage.fault(f"SIGTERM {name}"), stage.away(name):
            stage.kill(daemon, signal.SIGTERM)
            yield from back(stage, daemon)
        yield 0.5
    with stage.fault("SIGTERM redis"):
        stage.redis.stop()
        stage.redis.start()
        yield 0.5
