"""The tests' own servers: they keep their data, say why they did not start, and never outlive the tests."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.servers import RedisServer

ROOT = Path(__file__).parent.parent
END_S = 20.0


@pytest.mark.parametrize("tcp", [False, True])
def test_what_was_written_survives_a_kill_and_the_address_stays(tcp: bool) -> None:
    with RedisServer(tcp=tcp, appendonly="yes", appendfsync="always") as server:
        url, first = server.url, server.pid
        server.client().set("key", "value")
        server.kill()
        assert not server.running
        with pytest.raises(redis.ConnectionError):
            server.client().ping()
        server.start()
        assert (server.url, server.client().get("key")) == (url, b"value")
        assert server.pid != first
        server.restart()
        assert server.client().get("key") == b"value"
    assert not server.running
    assert not server.directory.exists()


def test_one_that_does_not_start_says_why() -> None:
    server = RedisServer(no_such_option="1")
    try:
        with pytest.raises(RuntimeError, match="no-such-option"):
            server.start()
        assert not server.running
    finally:
        server.close()


def test_it_ends_with_the_process_that_started_it() -> None:
    story = "import sys; from tests.servers import RedisServer; s = RedisServer().start(); print(s.pid, s.directory)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{story}; sys.stdout.flush(); sys.stdin.read()"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid, directory = parent.stdout.readline().split()
        server = os.pidfd_open(int(pid))
        try:
            parent.kill()
            ended, _, _ = select.select([server], [], [], END_S)
            assert ended, "it is an orphan"
        finally:
            os.close(server)
            shutil.rmtree(directory, ignore_errors=True)
