"""A directory for each attempt: whose it is, and that nothing is left of it, whoever is killed, whatever is in it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kingtask.worker.reap.reaper_process import REMOVE_OWN
from tests.processes import until
from tests.servers import RedisServer
from tests.worker.intruder import SHEBANG
from tests.worker.open_rig import needs_root, open_rig, refused, someone
from tests.worker.rig import WorkerHarness, WorkerProcess


@pytest.fixture
def rig(server: RedisServer) -> Iterator[WorkerHarness]:
    with open_rig(server) as made:
        yield made


def start(rig: WorkerHarness, **config: Any) -> WorkerProcess:
    return rig.start(private_dir=str(rig.directory / "dirs"), **config)


def attempts(rig: WorkerHarness, worker: WorkerProcess) -> list[str]:
    return sorted(path.name for path in (rig.directory / "dirs" / f"kingtask.{worker.name}").iterdir())


def empty(rig: WorkerHarness, worker: WorkerProcess) -> None:
    until(lambda: not attempts(rig, worker), lambda: f"no directories, not {attempts(rig, worker)}")


def test_it_is_where_an_attempt_starts_and_keeps_what_is_temporary(rig: WorkerHarness) -> None:
    rig.script("look", 'pwd -P; echo $KINGTASK_DIR $TMPDIR; stat -c "%a %u %g" .; echo x > file; mkdir below')
    worker = start(rig, umask="077", task_env="*")
    pwd, names, told = rig.run("look", env={"TMPDIR": "/elsewhere"}).stdout.decode().splitlines()
    assert pwd == str(rig.directory / "dirs" / f"kingtask.{worker.name}" / "1")
    assert (names, told) == (f"{pwd} {pwd}", f"700 {os.geteuid()} {os.getegid()}")
    assert rig.run("look").stdout.decode().splitlines()[0].endswith("/2")
    empty(rig, worker)
    assert worker.stop() == 0
    until(lambda: not list((rig.directory / "dirs").iterdir()), "nothing left")


@needs_root
def test_it_belongs_to_the_user_and_shows_no_neighbours(rig: WorkerHarness) -> None:
    rig.script("look", 'stat -c "%a %u %g" .; echo x > file; ls .. ../.. 2>&1; ls -d ../1/file')
    worker = start(rig, run_as=someone())
    uid = someone()["user"]
    first, *refusals, own = rig.run("look", stderr="keep").stdout.decode().splitlines()
    assert (first, own) == (f"700 {uid} {uid}", "../1/file")
    assert "Permission denied" in refusals[0]
    empty(rig, worker)
    place = (rig.directory / "dirs" / f"kingtask.{worker.name}").stat()
    assert (place.st_uid, stat.S_IMODE(place.st_mode)) == (0, 0o711)


HOSTILE = r"""
ln -s {0} link; ln -s {0}/keep file; ln -s / root; ln -s . self
mkdir closed; echo x > closed/in; chmod 0 closed
mkdir -p "$(printf 'a\nb')" "$(printf '\377')" -- -rf; touch -- "-i" "$(printf 'new\nline')" "*" " "
mkfifo fifo
i=0; while [ $i -lt 300 ]; do mkdir aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; cd a*; i=$((i+1)); done
i=0; while [ $i -lt 300 ]; do : > $i; i=$((i+1)); done
"""


@pytest.mark.parametrize("other", [pytest.param(True, marks=needs_root), False], ids=["another", "own"])
def test_hostile_trees_go_and_what_their_links_lead_to_stays(rig: WorkerHarness, other: bool) -> None:
    kept = rig.directory / "kept"
    kept.mkdir()
    kept.chmod(0o777)
    (kept / "keep").write_text("precious")
    (kept / "keep").chmod(0o666)
    rig.script("hostile", HOSTILE.format(kept))
    worker = start(rig, **({"run_as": someone()} if other else {}))
    for _ in range(3):
        rig.run("hostile", stderr="keep")
    empty(rig, worker)
    assert (kept / "keep").read_text() == "precious"
    assert sorted(kept.iterdir()) == [kept / "keep"]


@needs_root
def test_others_than_root_get_rid_of_what_they_have_closed_to_themselves(rig: WorkerHarness) -> None:
    """Of directories within directories; a file that is linked there from outside keeps its mode."""
    place, outside = rig.directory / "open" / "place", rig.directory / "open" / "outside"
    closes = "mkdir -p a/b/c d; ln ../outside a/b/link; echo x > a/b/c/e; chmod 400 d; chmod 0 a/b/c a/b; chmod 100 a"
    owner = int(someone()["user"])

    def run(*command: str, where: Path) -> None:
        subprocess.run(command, user=owner, group=owner, extra_groups=[], cwd=where, check=True)

    run("sh", "-c", "umask 377; : > outside; umask 077; mkdir place", where=rig.directory / "open")
    run("sh", "-c", closes, where=place)
    run(*REMOVE_OWN, str(place), where=rig.directory / "open")
    assert not place.exists()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o400


@needs_root
def test_names_that_are_exchanged_while_they_are_removed_lead_nowhere(rig: WorkerHarness) -> None:
    """A process that escaped goes on turning a directory into a link and back."""
    kept = rig.directory / "kept"
    kept.mkdir()
    kept.chmod(0o777)
    for n in range(50):
        (kept / str(n)).write_text("precious")
    exchange = (
        "import os\n"
        "os.mkdir('a'); [open(f'a/{n}', 'w').close() for n in range(50)]\n"
        f"os.symlink({str(kept)!r}, 'b')\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid(); os.closerange(0, 3)\n"
        "while True:\n"
        "    try: os.rename('a', 'c'); os.rename('b', 'a'); os.rename('a', 'b'); os.rename('c', 'a')\n"
        "    except OSError: pass\n"
    )
    rig.script("exchange", exchange, shebang=SHEBANG)
    worker = start(rig, run_as=someone())
    for _ in range(10):
        rig.run("exchange")
    empty(rig, worker)
    assert len(list(kept.iterdir())) == 50


def busy(rig: WorkerHarness, worker: WorkerProcess) -> Path:
    """The directory of an attempt that runs and has filled it."""
    rig.script("fill", f"mkdir -p a/b; echo x > a/b/c; echo up > {rig.directory}/open/$1; exec sleep 300")
    rig.put("fill", worker.name)
    rig.exists(f"open/{worker.name}")
    return rig.directory / "dirs" / f"kingtask.{worker.name}"


def test_the_guard_of_a_killed_worker_removes_it(rig: WorkerHarness) -> None:
    worker = start(rig)
    place = busy(rig, worker)
    assert worker.guard
    worker.kill()
    until(lambda: not place.exists(), "its end")


def test_the_next_worker_removes_what_one_left_that_was_killed_with_its_guard(rig: WorkerHarness) -> None:
    worker, other = start(rig), start(rig, queues="other")
    place, used = busy(rig, worker), rig.directory / "dirs" / f"kingtask.{other.name}"
    os.kill(worker.guard, signal.SIGKILL)
    worker.kill()
    assert place.exists()
    start(rig, queues="third")
    until(lambda: not place.exists(), "its end")
    assert used.exists()


def test_a_guard_that_is_lost_or_stopped_keeps_nobody_waiting(rig: WorkerHarness) -> None:
    rig.script("leave", "echo x > file")
    worker = start(rig, renew=0.1)
    os.kill(worker.guard, signal.SIGSTOP)
    for _ in range(5):
        assert rig.run("leave").state == "succeeded"
    os.kill(worker.guard, signal.SIGKILL)
    worker.logged("reaper=lost")
    empty(rig, worker)


def test_a_place_that_others_may_write_to_is_refused(rig: WorkerHarness) -> None:
    assert f"every user may change the content of {rig.directory}/open" in refused(
        rig, private_dir=str(rig.directory / "open")
    )
    assert "expected a directory that this user may write to" in refused(rig, private_dir="/nowhere")


def test_one_that_cannot_be_made_is_this_hosts_fault(rig: WorkerHarness) -> None:
    rig.script("fine", "echo fine")
    worker = start(rig, period=0.05)
    place = rig.directory / "dirs" / f"kingtask.{worker.name}"
    place.rename(rig.directory / "away")
    task = rig.put("fine")
    worker.logged("spawn=failed")
    (rig.directory / "away").rename(place)
    result = rig.result(task)
    assert (result.state, [attempt.reason for attempt in result.attempts][-1]) == ("succeeded", "")
