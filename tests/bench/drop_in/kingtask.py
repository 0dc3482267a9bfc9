"""kingtask for a harness of this kind: it puts a class `Adapter(base.Peer)` of a module beside its `base` to use.

`base` has `REDIS_URL`, `CONCURRENCY` and `Peer`; `servers` and `workers` return commands. Copy this file beside `base`,
and install kingtask into the environment that the harness runs it in.
"""

import os
import pathlib
import socket
import sys
import tempfile
import urllib.parse

import kingtask

from . import base

NAMESPACE = "kingtask"
RETRY = (5, 8, 9)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Adapter(base.Peer):
    config = "one broker (ack: stored), one worker (concurrency 4); all else default"
    packages = ("kingtask", "pyzmq", "redis", "hiredis")
    bulk_api = "submit_many"

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("BENCH_TMP")))
        server = urllib.parse.urlsplit(base.REDIS_URL)
        self.redis = f"{server.hostname}:{server.port}"
        self.broker, self.wakeup = (f"127.0.0.1:{free_port()}" for _ in range(2))

    def servers(self):
        return [self.daemon("broker", f"addr: {self.broker}\nack: stored\n")]

    def workers(self, schedules):
        bin_path = pathlib.Path(base.PEERS)  # where the probe is
        settings = f"broker: {self.broker}\nbin_path: {bin_path}\nconcurrency: {base.CONCURRENCY}\n"
        return [self.daemon("worker", settings)]

    def daemon(self, kind, settings):
        path = self.directory / f"{kind}.yaml"
        path.write_text(f"{settings}redis: {self.redis}\nwakeup: {self.wakeup}\nnamespace: {NAMESPACE}\n")
        return [sys.executable, "-c", f"from kingtask.cli.daemons import {kind}; {kind}()", "-c", str(path)]

    def open(self):
        self.client = kingtask.Client(self.broker, timeout=60)
        self.client.ping()

    def submit(self, argv):
        return self.client.submit(*named(argv), retry=RETRY)

    def submit_bulk(self, argvs):
        self.accept(kingtask.TaskSpec(name=name, args=args, retry=RETRY) for name, args in map(named, argvs))

    def submit_at(self, argv, eta):
        return self.client.submit(*named(argv), retry=RETRY, at=eta)

    def submit_at_bulk(self, jobs):
        self.accept(
            kingtask.TaskSpec(name=name, args=args, retry=RETRY, start_at=eta)
            for (name, args), eta in ((named(argv), eta) for argv, eta in jobs)
        )

    def accept(self, specs):
        for outcome in self.client.submit_many(specs):
            outcome.accepted()

    def wait(self, handle):
        return handle.result(60)

    def stored(self, redis, sent):
        return int(redis.hget(f"{{{NAMESPACE}}}:counts:default", "succeeded") or 0)


def named(argv):
    """The name of the executable under `bin_path`, and its arguments."""
    return pathlib.PurePath(argv[0]).name, tuple(argv[1:])
