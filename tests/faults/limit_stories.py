"""Stories about what a host runs short of, and about clocks, files and passwords that change under a daemon."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from kingtask.errors import KingtaskError
from tests.faults.host_stories import clock_library, mount
from tests.faults.play import TICK_S, FaultStory, Steps
from tests.faults.stage import FaultTestbed
from tests.faults.stories import Choice, back
from tests.faults.worker_stories import ended, until_ended
from tests.integration.rig import Daemon
from tests.servers import free_port

# ── a broker without descriptors, memory or disk ────────────────────────────────────────────────────────────────────


def logs_on_a_small_disk(stage: FaultTestbed) -> None:
    """Logs of all daemons, and where executables run, on a file system of their own. Before their start."""
    place = stage.directory / "small"
    place.mkdir()
    mount(place, 4)
    stage.logs = place
    stage.layout = replace(stage.layout, worker={**stage.layout.worker, "work_dir": str(place)})


def remove_small_disk(stage: FaultTestbed) -> None:
    place = stage.directory / "small"
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
    shutil.rmtree(stage.directory, ignore_errors=True)


def logs_full(for_s: float) -> FaultStory:
    """Nobody can write to its log."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        assert stage.logs is not None
        filler = stage.logs / "filler"
        with stage.fault("the disk of the logs is full"):
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4_096))
            yield for_s
            filler.unlink()

    return story


# ── clocks ──────────────────────────────────────────────────────────────────────────────────────────────────────────

HOUR_S = 3600
STEPS_S = (HOUR_S, -HOUR_S, 10 * 8766 * HOUR_S, -10 * 8766 * HOUR_S)


def wrong_clock(which: Choice) -> FaultStory:
    """The wall clock of one daemon jumps by an hour and by ten years, forth and back, while it runs."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        daemon = which(stage, random)
        name = stage.name(daemon)
        library, place = clock_library(stage.directory), stage.directory / "daemon-clock"
        place.write_bytes(struct.pack("q", 0))
        daemon.environment = {**stage.environment, "LD_PRELOAD": str(library), "CLOCK_OFFSET": str(place)}
        with stage.fault(f"SIGTERM {name}"), stage.away(name):
            stage.kill(daemon, signal.SIGTERM)
            yield from back(stage, daemon)
        while not stage.over:
            by_s = random.choice(STEPS_S)
            with stage.fault(f"the clock of {name} {by_s:+,d} s"):
                for offset_s in (by_s, 0):
                    with place.open("r+b") as file:  # in place: it is mapped
                        file.write(struct.pack("q", offset_s))
                    yield random.uniform(0.5, 1.5)
        daemon.environment = stage.environment
        with stage.fault(f"SIGTERM {name}"), stage.away(name):
            stage.kill(daemon, signal.SIGTERM)
            yield from back(stage, daemon)

    return story


def strange_instants(stage: FaultTestbed, random: Random) -> Steps:
    """Instants around leap seconds, changes of summer time and ends of calendars: refused, or in their order."""
    past = (0.0, 1e-3, 1_483_228_800.0, 1_711_846_800.0, 1_729_990_800.0)
    ids = [stage.submit("work", start_at=at) for at in past]
    with stage.fault("instants out of bounds"):
        for at in (-1.0, -(2.0**31), 253_402_300_799.0, 1e12, time.time() + 11 * 8766 * HOUR_S):
            try:
                one = stage.submit("work", start_at=at)
            except KingtaskError:
                continue
            stage.expect(stage.get(one) is None, f"a start at {at} was taken")
        yield 0.5
    now = time.time()
    ids += [stage.submit("work", start_at=now + ahead) for ahead in (3.0, 2.0, 2.5)]
    far = stage.submit("work", start_at=now + 3600 * 24 * 365 * 9)
    yield from until_ended(stage, ids, 30)
    started = {each.id: each.mono_ns for each in stage.executed() if each.event == "start"}
    third, first, second = ids[-3:]
    stage.expect(started[first] < started[second] < started[third], "the order of starts is not that of their instants")
    stage.cancel(far)


# ── Redis with another setting, other data, another password ────────────────────────────────────────────────────────


def fsync_is_not_there(stage: FaultTestbed, random: Random) -> Steps:
    """A broker that is to say `fsync` refuses a Redis that syncs once a second."""
    first = stage.brokers[0]
    addresses = {"addr": f"127.0.0.1:{free_port()}", "wakeup": f"127.0.0.1:{free_port()}"}
    third = Daemon(stage, "broker", {**first.config, **addresses, "ack": "fsync"})
    with stage.fault("a broker with ack: fsync"):
        third.start(ready=False)
        assert third.process is not None
        while third.process.poll() is None:
            yield TICK_S
    status, told = third.process.returncode, third.text()
    stage.expect(status == 3 and "ack: fsync needs" in told, f"it ended with {status}: {told[-500:]}")


def file_cut_off(down_s: tuple[float, float]) -> FaultStory:
    """kill -9 of Redis, and up to 4,096 bytes of the end of its append-only file are gone."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        with stage.fault("SIGKILL redis, and the end of its file is gone"):
            stage.redis.kill()
            last = max((stage.redis.directory / "appendonlydir").glob("*.incr.aof"))
            size, less = last.stat().st_size, random.randint(1, 4096)
            os.truncate(last, max(0, size - less))
            yield random.uniform(*down_s)
            stage.redis.start()

    return story


def empty_for_a_while(for_s: float) -> FaultStory:
    """Redis comes back on an empty directory, and then on its own: nobody writes anything into the empty one."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        with stage.fault("redis is empty"):
            empty = stage.directory / f"empty-{stage.faults}"
            empty.mkdir()
            stage.redis.stop()
            stage.redis.options["dir"] = str(empty)
            stage.redis.start()
            yield for_s
            server: Any = stage.redis.client(socket_timeout=5.0, decode_responses=True)
            keys = server.keys("*")
            stage.expect(not keys, f"an empty Redis was taken for the right one: {keys[:10]}")
            stage.redis.stop()
            del stage.redis.options["dir"]
            stage.redis.start()

    return story


USER = "kingtask"


def own_user(stage: FaultTestbed) -> None:
    """Brokers and workers log in as a user of their own. Before Redis is started."""
    stage.redis.options["user"] = (USER, "on", ">secret-0", "~*", "&*", "+@all")
    place = _password(stage, 0)
    login = {"redis": f"redis://{USER}@{stage.redis.url}/0", "redis_password_file": str(place)}
    layout = stage.layout
    stage.layout = replace(layout, broker={**layout.broker, **login}, worker={**layout.worker, **login})


def _password(stage: FaultTestbed, number: int) -> Path:
    place = stage.directory / "password"
    place.write_text(f"secret-{number}\n")
    place.chmod(0o600)
    return place


def password_rotated(off_s: float) -> FaultStory:
    """The user is switched off for a while, then has another password; the file is changed after Redis."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        with stage.fault("the password of redis is another"):
            server: Any = stage.primary()
            server.acl_setuser(USER, enabled=False)
            server.execute_command("CLIENT", "KILL", "USER", USER)
            yield off_s
            server.execute_command("ACL", "SETUSER", USER, "on", "resetpass", f">secret-{stage.faults}")
            yield 1.0
            _password(stage, stage.faults)
            yield 1.0

    return story


def no_secret_logged(stage: FaultTestbed) -> None:
    stage.expect(stage.logged("secret-") == 0, "a password is in a log")


# ── executables that change ─────────────────────────────────────────────────────────────────────────────────────────


def being_written(stage: FaultTestbed, random: Random) -> Steps:
    """An executable that is open for writing is tried again, then fails as `exec`; afterwards it runs."""
    place = stage.bin_path / "written"
    shutil.copy2(stage.bin_path / "work", place)
    with stage.fault("an executable is being written"):
        with place.open("ab"):
            held = [stage.submit("written") for _ in range(3)]
            yield from until_ended(stage, held, 30)
            soon = [stage.submit("written") for _ in range(3)]
            yield 0.2  # of the half second for which it is tried
        yield from until_ended(stage, soon, 30)
    reasons = {ended(stage, one).reason for one in held}
    stage.expect(reasons == {"exec"}, f"what was being written failed as {reasons}")
    states = {ended(stage, one).state.value for one in soon}
    stage.expect(states == {"succeeded"}, f"what was written for a moment came to {states}")


def exchanged(stage: FaultTestbed, random: Random) -> Steps:
    """An executable is replaced, gone, and a link that leads out, in turns: what is outside never gets far."""
    place, spare = stage.bin_path / "exchanged", stage.bin_path / ".spare"
    outside, mark = stage.directory / "outside", stage.directory / "ran-outside"
    outside.write_text(f"#!/bin/sh\nsleep 1\ntouch {mark}\n")
    outside.chmod(0o755)
    ids: list[str] = []
    with stage.fault("an executable is exchanged"):
        ends_s = monotonic() + 4
        while monotonic() < ends_s:
            match random.choice(("good", "link", "gone")):
                case "good":
                    shutil.copy2(stage.bin_path / "work", spare)
                    spare.replace(place)
                case "link":
                    spare.symlink_to(outside)
                    spare.replace(place)
                case "gone":
                    place.unlink(missing_ok=True)
            if len(ids) < 100:
                ids.append(stage.submit("exchanged"))
            yield TICK_S
    yield from until_ended(stage, ids, 30)
    stage.expect(not mark.exists(), "a program outside of bin_path ran to its end")
    told = {ended(stage, one).reason for one in ids}
    stage.expect(told <= {"", "missing", "not_executable", "exec"}, f"they ended as {told}")


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────────────

CLI_TIMEOUT_S = 2.0
CLI_LATER_S = 10.0
"""A Python starts meanwhile, on a busy machine."""


def command_line(stage: FaultTestbed, random: Random) -> Steps:
    """`kingtask` against brokers that are not there, are stopped or speak something else: its exit status, in time."""
    broker = stage.brokers[0]
    dead = f"tcp://127.0.0.1:{free_port()}"
    redis_port = f"tcp://{stage.redis.url}"
    with stage.fault("nobody is there"):
        for words, endpoint in ((("ping",), dead), (("stats",), dead), (("ping",), redis_port)):
            yield from _says(stage, endpoint, words, {4})
        yield from _says(stage, dead, ("submit", "work"), {4, 8})
    with stage.fault("SIGSTOP broker 1"), stage.away("broker 1"):
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            yield from _says(stage, broker.endpoint, ("ping",), {4})
            yield from _says(stage, broker.endpoint, ("get", "00000000-0000-4000-8000-000000000000"), {4})
        finally:
            os.kill(broker.pid, signal.SIGCONT)
    yield from _says(stage, broker.endpoint, ("ping",), {0})
    yield from _says(stage, broker.endpoint, ("get", "00000000-0000-4000-8000-000000000000"), {7})
    yield from _says(stage, "http://127.0.0.1", ("ping",), {3})


def _says(stage: FaultTestbed, endpoint: str, words: tuple[str, ...], statuses: set[int]) -> Steps:
    command = [sys.executable, "-m", "kingtask", words[0], "--broker", endpoint, "--timeout", f"{CLI_TIMEOUT_S:g}"]
    began_s = monotonic()
    with subprocess.Popen(
        [*command, *words[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as asked:
        while asked.poll() is None and monotonic() < began_s + 60:
            yield TICK_S
        asked.kill()
        told, _ = asked.communicate()
    took_s = monotonic() - began_s
    what = f"kingtask {' '.join(words)} at {endpoint}"
    stage.expect(asked.returncode in statuses, f"{what} ended with {asked.returncode}: {told[-500:]}")
    stage.expect(took_s <= CLI_TIMEOUT_S + CLI_LATER_S, f"{what} took {took_s:.1f} s")
