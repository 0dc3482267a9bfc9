"""`kingtask` as a process: pipes, signals, streams, locales; never a traceback."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time

import pytest
import zmq

from tests.cli.tree import KINGTASK, environment, kingtask


def shell(script: str, *words: str, broker: str | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
    command = ["sh", "-c", script, "sh", *KINGTASK, *words]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment(broker, env))


def test_no_command_is_usage():
    done = kingtask()
    assert done.returncode == 2
    assert b"Usage" in done.stderr


@pytest.mark.parametrize(("typo", "meant"), [("sumbit", b"submit"), ("stat", b"stats"), ("requeu", b"requeue")])
def test_a_typo_gets_a_suggestion(typo, meant):
    done = kingtask(typo)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Did you mean '" + meant + b"'" in done.stderr


def test_a_command_that_is_far_from_any_gets_them_all():
    assert b"submit, get, wait" in kingtask("xyzzy").stderr


def test_help_has_the_exit_statuses():
    done = kingtask("--help")
    assert done.returncode == 0
    assert b"8  nobody knows whether the task" in done.stdout


@pytest.mark.parametrize("command", ["submit", "list", "dev", "doctor"])
def test_every_command_has_help(command):
    assert kingtask(command, "--help").returncode == 0


@pytest.fixture
def silent():
    """A port at which somebody listens and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def nobody():
    """A port at which nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


@pytest.mark.parametrize(
    "words", [["submit", "example"], ["ping"], ["get", "00000000-0000-4000-8000-000000000000"], ["list"], ["stats"]]
)
@pytest.mark.parametrize("kind", ["silent", "nobody"])
def test_no_broker_is_status_4_within_the_timeout(request, kind, words):
    broker = request.getfixturevalue(kind)
    began = time.monotonic()
    done = kingtask(words[0], "--timeout", "0.3", *words[1:], broker=broker)
    assert (done.returncode, done.stdout) == (4, b"")
    assert broker.encode() in done.stderr
    assert b"Traceback" not in done.stderr
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("options", "again"), [([], rb""), (["--expires-at", "+10m"], rb" --expires-at [0-9]{10}\.?[0-9]*")]
)
def test_a_submit_without_an_answer_says_how_to_send_it_again(options, again):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as mute:
        mute.linger = 0
        port = mute.bind_to_random_port("tcp://127.0.0.1")
        done = kingtask("submit", "--timeout", "0.3", *options, "example", broker=f"127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (4, b"")
    assert re.search(rb"again with --id [0-9a-f-]{36}" + again + rb":", done.stderr)


def test_a_bad_address_is_a_configuration_error():
    done = kingtask("ping", "--broker", "nonsense:port")
    assert done.returncode == 3
    assert b"nonsense:port" in done.stderr


def test_the_option_wins_over_the_environment_and_takes_several(dev, nobody):
    assert kingtask("ping", "--broker", dev.broker, broker=nobody).returncode == 0
    assert kingtask("ping", "--broker", f"{nobody},{dev.broker}").returncode == 0
    assert kingtask("ping", "--broker", nobody, "--broker", dev.broker).returncode == 0
    assert kingtask("ping", broker=f"{nobody},{dev.broker}").returncode == 0


def test_interrupted_is_status_130_and_the_task_goes_on(dev):
    process = subprocess.Popen(
        [*KINGTASK, "submit", "--delay", "1h", "--wait", "example", "12", "45"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(dev.broker),
    )
    assert process.stderr is not None
    task_id = process.stderr.readline().decode().strip()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert b"scheduled" in dev.run("get", task_id).stdout


INTERRUPTED = """
import os, signal, sys
module = sys.argv[1]
sys.argv[1:] = ["submit", "example"]

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

from kingtask.cli.main import main
sys.meta_path.insert(0, Interrupt())
main()
"""


@pytest.mark.parametrize("module", ["click", "kingtask.cli.commands", "msgspec", "kingtask.cli.submit", "zmq"])
def test_interrupted_during_its_imports_leaves_no_traceback(nobody, module):
    done = subprocess.run(
        [KINGTASK[0], "-c", INTERRUPTED, module], capture_output=True, timeout=60, check=False, env=environment(nobody)
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("reader", ["head -c 1 >/dev/null", "true"])
def test_a_reader_that_went_away_is_status_141_without_a_word(dev, reader, unbuffered):
    script = f'{{ "$@"; echo $? >&2; }} | {reader}'
    words = ["submit", "--wait", "count", "100000"]
    done = shell(script, *words, broker=dev.broker, PYTHONUNBUFFERED=unbuffered)
    *_, status = done.stderr.split()
    assert (status, done.stderr.count(b"\n")) == (b"141", 2)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_slow_reader_gets_everything(dev, unbuffered):
    """More than a pipe holds, into one that does not block."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen(
        [*KINGTASK, "submit", "--wait", "count", "100000"],
        stdout=writing,
        stderr=subprocess.DEVNULL,
        env=environment(dev.broker, {"PYTHONUNBUFFERED": unbuffered}),
    )
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        seen = pipe.read()
    assert process.wait(60) == 0
    assert seen == b"".join(b"%d\n" % n for n in range(1, 100_001))


@pytest.mark.parametrize("words", [["submit", "--wait", "example", "12", "45"], ["--help"], ["ping", "--json"]])
def test_a_full_disk_is_status_74(dev, words):
    done = shell('exec "$@" >/dev/full', *words, broker=dev.broker)
    assert done.returncode == 74
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(dev, closed):
    done = shell(f'exec "$@" {closed}', "submit", "--wait", "example", "12", "45", broker=dev.broker)
    assert done.returncode == 0
    assert done.stdout in (b"57\n", b"")


@pytest.mark.parametrize("locale", [{"LANG": "C"}, {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_the_locale_changes_nothing(dev, locale):
    done = dev.run("submit", "--wait", "args", "grün €".encode(), env=locale)
    assert (done.returncode, done.stdout) == (0, "grün €\0".encode())
    task_id = done.stderr.decode().strip()
    done = dev.run("get", task_id, env=locale)
    assert done.returncode == 0
    assert b"gr" in done.stdout
    done = dev.run("get", "--json", task_id, env=locale)
    assert "grün €".encode() in done.stdout


def test_a_narrow_terminal_changes_nothing_that_programs_read(dev):
    done = dev.run("submit", "--wait", "--json", "example", "12", "45", env={"COLUMNS": "20"})
    assert done.stdout.count(b"\n") == 1


def test_submit_imports_nothing_that_it_does_not_need(dev):
    code = (
        "import sys; sys.argv = ['kingtask', 'submit', 'example', '1', '2'];\n"
        "from kingtask.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [KINGTASK[0], "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment(dev.broker)
    )
    loaded = set(done.stdout.split("\n")[1].split())
    assert not loaded & {"asyncio", "redis", "hiredis", "yaml", "rich", "ssl", "http", "logging", "concurrent"}
    assert "zmq" in loaded


def test_arguments_that_are_not_text_are_refused(dev):
    done = dev.run("submit", "example", b"\xff")
    assert done.returncode == 2
    assert b"argument 1" in done.stderr


def test_python_m_and_the_script_are_the_same():
    assert os.access(KINGTASK[0], os.X_OK)
    assert kingtask("--version").stdout.startswith(b"kingtask ")
