"""What happens to a rig, as it is written down: faults, pings, clocks, sizes, exits.

One thread for each broker pings it, one asks Redis for its time; the rest is the rig's own thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import Any

import redis

from kingtask import Client
from kingtask.errors import KingtaskError
from tests.faults.history import (
    LEDGER,
    ClockSample,
    Execution,
    Exit,
    Fault,
    Journal,
    Ping,
    Record,
    Sample,
    read_ledger,
)
from tests.integration.rig import Daemon, StackHarness
from tests.processes import alive, descriptors

PING_EVERY_S = 0.5
PING_TIMEOUT_S = 3.0
CLOCK_EVERY_S = 1.0
SAMPLE_EVERY_S = 1.0


SAID = 4_000
"""Characters of the log of a daemon that ended by itself."""


class Chronicle(StackHarness):
    """A rig that writes history into a directory. Brokers and workers have numbers from 1: `broker 1`."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(tcp=True, **options)
        self.histories = directory
        self.ledger = directory / LEDGER
        self.ledger.touch()
        self.brokers: list[Daemon] = []
        self.workers: list[Daemon] = []
        self.complaints: list[str] = []
        self.timeline: list[str] = []
        self.mortal: set[Daemon] = set()
        """Daemons that may end at any time: that is what the case is about."""
        self._began_ns = monotonic_ns()
        self._faults = 0
        self._next_sample_s = 0.0
        self._away: dict[str, int] = {}
        self._changes: dict[str, int] = {}
        self._journals: dict[str, Journal] = {}
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def __exit__(self, *exception: Any) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        super().__exit__(*exception)

    def observe(self) -> None:
        """Begin to ping and to look at clocks."""
        for number, broker in enumerate(self.brokers, 1):
            self._thread(self._ping, f"broker {number}", broker.endpoint)
        self._thread(self._look_at_clock)

    def observe_no_more(self) -> None:
        """What is asked already may still be answered."""
        self._closing.set()

    def name(self, daemon: Daemon) -> str:
        fellows = self.brokers if daemon.kind == "broker" else self.workers
        return f"{daemon.kind} {fellows.index(daemon) + 1}"

    def record(self, file: str, record: Record) -> None:
        """Append to a file of the history."""
        journal = self._journals.get(file)
        if journal is None:
            journal = self._journals[file] = Journal(self.histories / file)
        journal.write(record)

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """From its beginning until it has been taken back."""
        self._faults += 1
        number = self._faults
        self.record("faults.jsonl", Fault(fault=what, event="start", mono_ns=monotonic_ns(), n=number))
        began_s = self.clock_s()
        try:
            yield
        finally:
            self.record("faults.jsonl", Fault(fault=what, event="stop", mono_ns=monotonic_ns(), n=number))
            self.timeline.append(f"{began_s:7.2f} – {self.clock_s():7.2f} s  {what}")

    @property
    def faults(self) -> int:
        """How many have begun."""
        return self._faults

    @contextmanager
    def away(self, *names: str) -> Iterator[None]:
        """Meanwhile nobody expects these processes to answer."""
        for name in names:
            self._change(name, 1)
        try:
            yield
        finally:
            for name in names:
                self._change(name, -1)

    def _change(self, name: str, by: int) -> None:
        self._away[name] = self._away.get(name, 0) + by
        self._changes[name] = self._changes.get(name, 0) + 1

    def clock_s(self) -> float:
        """Seconds since the case began."""
        return (monotonic_ns() - self._began_ns) / 1e9

    def complain(self, what: str) -> None:
        """Something that a case expects does not hold: the run is invalid."""
        self.complaints.append(what)

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.complain(what)

    def logged(self, text: str) -> int:
        """How often the logs of brokers and workers hold it."""
        return sum(daemon.text().count(text) for daemon in self.daemons)

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def note_exit(self, daemon: Daemon, status: int, *, wanted: bool) -> None:
        said = "" if wanted else daemon.text()[-SAID:]
        record = Exit(mono_ns=monotonic_ns(), proc=self.name(daemon), status=status, wanted=wanted, said=said)
        self.record("exits.jsonl", record)

    def executed(self) -> list[Execution]:
        """The ledger so far."""
        return list(read_ledger(self.ledger))

    def in_flight(self) -> list[Execution]:
        """Starts without an end, of processes that are there."""
        executed = self.executed()
        ended = {(each.id, each.attempt, each.pid) for each in executed if each.event == "end"}
        starts = [each for each in executed if each.event == "start"]
        return [each for each in starts if (each.id, each.attempt, each.pid) not in ended and alive(each.pid)]

    def sample(self) -> None:
        """Once a second: memory and descriptors of all brokers and workers; notes those that ended by themselves."""
        if self.clock_s() < self._next_sample_s:
            return
        self._next_sample_s = self.clock_s() + SAMPLE_EVERY_S
        for daemon in self.daemons:
            process = daemon.process
            if process is None:
                continue
            if (status := process.poll()) is not None:
                daemon.process = None
                self.note_exit(daemon, status, wanted=daemon in self.mortal)
                continue
            place = Path(f"/proc/{process.pid}")
            try:
                pages = int((place / "statm").read_text().split()[1])
                fds = len(descriptors(process.pid))
            except OSError:
                continue
            size = pages * os.sysconf("SC_PAGE_SIZE")
            self.record(
                "samples.jsonl",
                Sample(mono_ns=monotonic_ns(), proc=self.name(daemon), pid=process.pid, rss_bytes=size, fds=fds),
            )

    # ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _thread(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _ping(self, name: str, endpoint: str) -> None:
        with Client(endpoint, timeout=PING_TIMEOUT_S, **self.keys) as client:
            while not self._closing.wait(PING_EVERY_S):
                before, changes = self._away.get(name, 0), self._changes.get(name, 0)
                sent_ns = monotonic_ns()
                took_ns: int | None = None
                try:
                    client.ping()
                    took_ns = monotonic_ns() - sent_ns
                except KingtaskError:
                    pass
                expected = not before and changes == self._changes.get(name, 0)
                record = Ping(mono_ns=sent_ns, broker=name, took_ns=took_ns, expected=expected)
                self.record("pings.jsonl", record)

    def _look_at_clock(self) -> None:
        server = self.redis.client(socket_timeout=2.0)
        while not self._closing.wait(CLOCK_EVERY_S):
            self.look_at_clock(server)

    def look_at_clock(self, server: redis.Redis | None = None) -> None:
        """Note Redis's time beside ours: the quickest of three looks; nothing if Redis is not there."""
        server = server or self.redis.client(socket_timeout=2.0)
        best: ClockSample | None = None
        for _ in range(3):
            before_ns = monotonic_ns()
            try:
                seconds, micros = server.time()
            except redis.RedisError:
                return
            width_ns = monotonic_ns() - before_ns
            if best is None or width_ns < best.width_ns:
                redis_us = seconds * 1_000_000 + micros
                best = ClockSample(mono_ns=before_ns + width_ns // 2, redis_us=redis_us, width_ns=width_ns)
        assert best is not None
        self.record("clock.jsonl", best)
