"""Stories about a broker's sockets: peers that mean harm, and what it must still do meanwhile."""

from __future__ import annotations

import subprocess
import sys
from random import Random
from statistics import quantiles
from time import monotonic, monotonic_ns

import zmq

from kingtask import protocol, wire
from tests.faults.history import Ping, Sample, read
from tests.faults.play import TICK_S, FaultStory, Steps
from tests.faults.stage import FaultTestbed
from tests.processes import descriptors, until
from tests.servers import die_with_parent

GROWTH_BYTES = 48 * 2**20
"""32 MiB for the attack, and 16 MiB for the ordinary work beside it."""
PING_P90_MS = 1_000.0
"""50 ms would do on an idle machine; here attackers, broker and workers share two cores."""


def attack(kind: str, for_s: float, *, wakeups: bool = False, peers: int = 1) -> FaultStory:
    """Peers of a kind (abuse.py) at the first broker: the same process answers on."""

    def story(stage: FaultTestbed, random: Random) -> Steps:
        broker = stage.brokers[0]
        pid = broker.pid
        address = broker.config["wakeup" if wakeups else "addr"]
        began_ns = monotonic_ns()
        with stage.fault(f"{peers} × {kind}"):
            attackers = [
                subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.abuse", kind, address, str(random.random()), str(for_s)],
                    stdout=subprocess.PIPE,
                    stdin=subprocess.DEVNULL,
                    env=stage.key_environment(),
                    text=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509  (prctl is all it does)
                )
                for _ in range(peers)
            ]
            deadline_s = monotonic() + for_s + 20
            while any(each.poll() is None for each in attackers) and monotonic() < deadline_s:
                yield TICK_S
            for each in attackers:
                each.kill()
                told, _ = each.communicate()
                told = told.removeprefix("ready").strip()
                stage.expect(each.returncode == 0 and int(told) > 0, f"{kind} did not attack: {each.returncode} {told}")
                stage.timeline.append(f"          {kind}: {told}")
        same = broker.process is not None and broker.pid == pid
        stage.expect(same, "the broker is not the same process any more")
        _answered(stage, began_ns)

    return story


def _answered(stage: FaultTestbed, began_ns: int) -> None:
    pings = [each for each in read(stage.histories / "pings.jsonl", Ping) if each.broker == "broker 1"]
    took_ms = [each.took_ns / 1e6 for each in pings if each.mono_ns > began_ns and each.took_ns is not None]
    if len(took_ms) >= 10:
        p90 = quantiles(took_ms, n=10)[-1]
        stage.expect(p90 <= PING_P90_MS, f"nine pings of ten took up to {p90:.0f} ms")


def memory_is_flat(stage: FaultTestbed) -> None:
    """Once it is over the broker is as small as before, and has no descriptor more."""
    broker = stage.brokers[0]
    own = [each for each in read(stage.histories / "samples.jsonl", Sample) if each.proc == "broker 1"]
    grown = own[-1].rss_bytes - own[0].rss_bytes
    stage.expect(grown <= GROWTH_BYTES, f"the broker grew by {grown / 2**20:.0f} MiB")
    until(lambda: len(descriptors(broker.pid)) <= own[0].fds + 16, "the broker's descriptors go back to what they were")


REFUSED = {
    "another version": (wire.pack({"v": 2, "rid": 1, "op": "ping"}), "unsupported_version"),
    "no version": (wire.pack({"rid": 1, "op": "ping"}), "unsupported_version"),
    "an unknown field": (wire.pack({"v": 1, "rid": 1, "op": "ping", "new": 1}), "invalid_request"),
    "an unknown op": (wire.pack({"v": 1, "rid": 1, "op": "teleport"}), "unknown_op"),
    "an unknown field of a task": (
        wire.pack({"v": 1, "rid": 1, "op": "submit", "task": {"name": "work", "colour": "red"}}),
        "invalid_request",
    ),
}


def other_versions(stage: FaultTestbed, random: Random) -> Steps:
    """A newer client is refused field by field and version by version, and is told what this broker speaks."""
    with stage.fault("a client of another version"), zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger, dealer.rcvtimeo = 0, 10_000
        dealer.connect(stage.brokers[0].endpoint)
        yield 1.0
        for what, (message, code) in REFUSED.items():
            dealer.send(message)
            reply = protocol.decode_reply(dealer.recv())
            told = (reply["ok"], reply["rid"], reply["error"]["code"], reply["error"]["stored"])
            stage.expect(told == (False, 1, code, "no"), f"{what} was answered {told}")
            yield TICK_S
        dealer.send(protocol.encode_request(1, "ping", {}))
        stage.expect(protocol.decode_reply(dealer.recv())["protocols"] == [1], "ping does not say what is spoken")
