"""Faults of the host: system calls that fail or drag (strace), a full disk (tmpfs), a clock that steps."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import monotonic

from tests.faults.layout import Skipped
from tests.faults.play import TICK_S, FaultStory, Steps
from tests.faults.stage import FaultTestbed
from tests.servers import RedisServer, die_with_parent

CLOCK = Path(__file__).parent / "clock.c"


def injected(
    what: str, pid: Callable[[FaultTestbed], int | None], calls: str, effect: str, for_s: tuple[float, float]
) -> FaultStory:
    """System calls of a process's main thread have an effect (`strace -e inject`) for a while."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        strace = shutil.which("strace")
        if strace is None:
            raise Skipped("strace is not installed")
        while (target := pid(stage)) is None:
            yield TICK_S
        with stage.fault(what):
            inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:{effect}"]
            tracer = subprocess.Popen(
                [strace, "-qq", "-o", "/dev/null", *inject, "-p", str(target)],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                preexec_fn=die_with_parent,  # noqa: PLW1509  (prctl is all it does)
            )
            try:
                while not _traced(target) and tracer.poll() is None:
                    yield TICK_S
                if tracer.poll() is not None and Path(f"/proc/{target}").exists():
                    assert tracer.stderr is not None
                    raise Skipped(f"strace: {tracer.stderr.read().decode(errors='replace').strip()}")
                ends_s = monotonic() + random.uniform(*for_s)
                while monotonic() < ends_s and tracer.poll() is None:
                    yield TICK_S
            finally:
                if tracer.poll() is None:
                    tracer.send_signal(signal.SIGINT)  # it lets go of what it traces
                tracer.wait()
                assert tracer.stderr is not None
                tracer.stderr.close()

    return story


def _traced(pid: int) -> bool:
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def small_disk(server: RedisServer, megabytes: int) -> None:
    """Put the server's directory on a file system of its own. Before its start. Raises Skipped."""
    mount(server.directory, megabytes)


def mount(place: Path, megabytes: int) -> None:
    """Put a file system of its own there. Raises Skipped."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "kingtask-test", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise Skipped(f"no file system may be mounted here: {mounted.stderr.strip()}")


def remove_disk(server: RedisServer) -> None:
    subprocess.run(["umount", "-l", str(server.directory)], check=False, capture_output=True)
    shutil.rmtree(server.directory, ignore_errors=True)


def disk_full(for_s: float) -> FaultStory:
    """No space is left where Redis keeps its data; it may exit, and is started again when there is."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        filler = stage.redis.directory / "filler"
        with stage.fault("the disk is full"):
            with filler.open("wb") as file:
                try:
                    while True:
                        os.write(file.fileno(), bytes(65_536))
                except OSError:
                    pass
            yield for_s
            filler.unlink()
            if not stage.redis.running:
                stage.redis.kill()
                stage.redis.start()

    return story


def own_clock(server: RedisServer, directory: Path) -> None:
    """Have a server's clock differ by what `step` says. Before its start."""
    library, place = clock_library(directory), directory / "clock"
    place.write_bytes(struct.pack("q", 0))
    server.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(place)}


def clock_library(directory: Path) -> Path:
    """For LD_PRELOAD: clock.c, compiled."""
    library = directory / "clock.so"
    if not library.exists():
        compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, CLOCK], check=True)
    return library


def step(by_s: int, for_s: tuple[float, float]) -> FaultStory:
    """Redis's clock makes a step, and goes on from there."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        place = Path(stage.redis.environment["CLOCK_OFFSET"])
        with stage.fault(f"Redis's clock {by_s:+d} s"):
            (offset,) = struct.unpack("q", place.read_bytes())
            stage.look_at_clock()
            with place.open("r+b") as file:  # in place: it is mapped
                file.write(struct.pack("q", offset + by_s))
            stage.look_at_clock()
            yield random.uniform(*for_s)

    return story
