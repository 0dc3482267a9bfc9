"""The core against brokers that lose, repeat, reorder, refuse, stay silent or die: simulated, so minutes are fast."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kingtask import protocol, wire
from kingtask.client.call import Call
from kingtask.client.core import Core
from kingtask.errors import Busy, InvalidRequest, NoAnswer, NotConfirmed, RequestRefused, Unavailable
from tests.client.simulation import Broker, ClientSimulation, Mood

HEALTHY = [(0.0, Mood.WELL)]


def requeue(name: str = "task", timeout_s: float = 10.0) -> Call:
    """Any op that writes; the simulated brokers answer with its id."""
    return Call("requeue", {"id": name}, timeout_s, about=name)


def one(*moods: tuple[float, Mood]) -> ClientSimulation:
    return ClientSimulation([Broker(list(moods))])


def the_error(call: Call) -> RequestRefused | NoAnswer:
    assert isinstance(call.error, (RequestRefused, NoAnswer)), (call.reply, call.error)
    return call.error


# ── whatever happens ─────────────────────────────────────────────────────────────────────────────────────────────────

schedules = st.lists(st.tuples(st.floats(0.01, 20), st.sampled_from(Mood)), min_size=1, max_size=5).map(
    lambda steps: [(sum(step[0] for step in steps[:i]), mood) for i, (_, mood) in enumerate(steps)]
)


@settings(max_examples=200)
@given(
    brokers=st.lists(schedules, min_size=1, max_size=3),
    calls=st.lists(st.tuples(st.floats(0, 20), st.floats(0.05, 30)), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
)
def test_every_call_ends_once_in_time_with_its_own_reply_and_says_truly_what_is_stored(brokers, calls, seed):
    world = ClientSimulation([Broker(moods) for moods in brokers], seed)
    started = {world.start_at(at, requeue(f"task{i}", timeout)): at + timeout for i, (at, timeout) in enumerate(calls)}

    world.run()

    ended = [call for _, call in world.done]
    assert sorted(call.rid for call in ended) == sorted(call.rid for call in started), "each exactly once"
    for at, call in world.done:
        assert at <= started[call] + 1e-6, "no later than its deadline"
        assert (call.reply is None) != (call.error is None)
        stored = any(call.about in broker.stored for broker in world.brokers)
        if call.reply is not None:
            assert call.reply["echo"] == call.about, "the reply is its own"
            assert stored
        else:
            error = the_error(call)
            assert error.id == call.about
            assert error.stored == "unknown" or not stored, "what is called not stored is not stored"
    for broker in world.brokers:
        by_rid: dict[int, set[bytes]] = {}
        for message in broker.seen:
            by_rid.setdefault(wire.decode(message)["rid"], set()).add(message)
        assert all(len(messages) == 1 for messages in by_rid.values()), "every try has the same bytes"
    assert world.core.pending == 0
    assert world.core.next_at() == inf, "nothing is left to do"


@settings(max_examples=200)
@given(
    others=st.lists(schedules, max_size=2),
    place=st.integers(0, 2),
    starts=st.lists(st.floats(0, 20), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_one_healthy_broker_of_several_is_found(others, place, starts, seed):
    brokers = [Broker(moods) for moods in others]
    brokers.insert(place, Broker(HEALTHY))
    world = ClientSimulation(brokers, seed)
    calls = [world.start_at(at, requeue(f"task{i}", 120.0)) for i, at in enumerate(starts)]

    world.run()

    assert [call.error for call in calls] == [None] * len(calls)


@settings(max_examples=200)
@given(schedule=schedules, seed=st.integers(0, 2**32))
def test_a_broker_in_trouble_is_not_stormed(schedule, seed):
    world = ClientSimulation([Broker(schedule)], seed)
    call = world.start(requeue(timeout_s=60.0))

    world.run()

    assert call.tries <= 60
    assert world.connections <= 60


# ── one at a time ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reply_lost_with_a_dying_broker_is_asked_for_again_at_once_at_the_next_address():
    world = ClientSimulation([Broker([(0, Mood.MUTE), (0.5, Mood.DEAD)]), Broker(HEALTHY)])
    call = world.start(requeue())

    world.run()

    assert call.reply
    assert world.done[0][0] < 0.6
    assert world.brokers[0].seen == world.brokers[1].seen


def test_a_silent_broker_is_left_after_a_second():
    world = ClientSimulation([Broker([(0, Mood.MUTE)]), Broker(HEALTHY)])
    call = world.start(requeue())

    world.run()

    assert call.reply
    assert 1.0 < world.done[0][0] < 1.2


def test_a_restarted_broker_is_connected_to_again():
    world = one((0, Mood.DEAD), (3.0, Mood.WELL))
    call = world.start(requeue())

    world.run()

    assert call.reply
    assert world.done[0][0] < 3.0 + 2.1


def test_the_late_reply_of_a_slow_broker_counts():
    world = one((0, Mood.SLOW))
    call = world.start(requeue())

    world.run()

    assert call.reply
    assert call.tries == 2
    assert world.done[0][0] < 2.6, "the reply to the first try"


def test_a_busy_broker_is_asked_again_when_it_says():
    core = Core(["a"], lambda: 0.0)
    call = requeue()
    _send(core, call, now=0.0)
    assert core.received(protocol.refusal(call.rid, Busy("full", retry_after_s=3.0)), 0.1) is None
    assert core.next_to_send() is None
    assert core.next_at() == pytest.approx(3.1)

    assert core.tick(3.1) == []

    assert core.next_to_send() is call


def test_a_reply_establishes_the_connection_before_the_monitor_reports_it():
    core = Core(["a"], lambda: 0.0)
    first, second = requeue("first"), requeue("second")
    core.start(first, 0.0)
    core.opened(0.0)
    core.sent(0.0)
    assert core.received(protocol.ok(first.rid, {}), 0.1) is first
    core.start(second, 5.0)

    core.tick(5.0)

    assert not core.closed


def test_a_refusal_that_outlasts_the_deadline_is_the_error_and_comes_early():
    core = Core(["a"], lambda: 0.0)
    call = requeue(timeout_s=2.0)
    _send(core, call, now=0.0)

    assert core.received(protocol.refusal(call.rid, Busy("full", retry_after_s=3.0)), 0.1) is call

    error = the_error(call)
    assert isinstance(error, Busy)
    assert error.stored == "no"


def test_a_refusal_after_a_lost_reply_does_not_claim_that_nothing_is_stored():
    world = one((0, Mood.MUTE), (0.5, Mood.DEAD), (0.6, Mood.BUSY))
    call = world.start(requeue(timeout_s=3.0))

    world.run()

    error = the_error(call)
    assert isinstance(error, Busy)
    assert error.stored == "unknown"


def test_nor_does_one_after_a_reply_that_did_not_come_in_time():
    world = one((0, Mood.MUTE), (0.5, Mood.BUSY))
    call = world.start(requeue(timeout_s=3.0))

    world.run()

    assert world.connections == 1
    assert the_error(call).stored == "unknown"


def test_nor_does_a_refusal_for_good():
    core = Core(["a"], lambda: 0.0)
    call = requeue()
    _send(core, call, now=0.0)
    core.broken(0.5)
    core.opened(1.0)
    core.sent(1.0)

    assert core.received(protocol.refusal(call.rid, RequestRefused("the store failed at this")), 1.1) is call

    assert the_error(call).stored == "unknown"


def test_a_second_refusal_does_not_prolong_the_rest():
    core = Core(["a"], lambda: 0.0)
    call = requeue()
    _send(core, call, now=0.0)
    refusal = protocol.refusal(call.rid, Busy("full", retry_after_s=3.0))
    core.received(refusal, 0.1)

    core.received(refusal, 2.0)

    assert core.next_at() == pytest.approx(3.1)


def test_refusals_of_a_long_wait_that_was_served_in_between_do_not_add_up():
    core = Core(["a"], lambda: 0.0)
    call = Call("wait", {"id": "task", "timeout_s": 30.0}, inf, silence_s=10.0)
    core.start(call, 0.0)
    core.opened(0.0)
    core.up()
    for now in (0.0, 8.0, 16.0, 24.0):
        assert core.next_to_send() is call
        core.sent(now)
        assert core.received(protocol.refusal(call.rid, Unavailable("stopping")), now + 6.0) is None
        assert core.next_at() == pytest.approx(now + 6.05), "the shortest rest"
        core.tick(now + 7.0)


def test_after_a_reply_a_lost_connection_is_restored_quickly_again():
    world = one((0, Mood.DEAD), (60, Mood.WELL), (70, Mood.DEAD), (70.1, Mood.WELL))
    world.start(requeue(timeout_s=80.0))
    world.run(until=69.9)
    world.start(requeue())
    world.run(until=70.05)

    call = world.start(requeue())
    world.run()

    assert call.reply
    assert world.done[-1][0] < 70.3


def test_nothing_is_kept_of_calls_that_are_done():
    core = Core(["a"], lambda: 0.0)
    for _ in range(100):
        call = requeue()
        _send(core, call, now=0.0)
        core.received(protocol.ok(call.rid, {}), 0.1)

    assert not core._timers
    assert not core._queue


def test_not_confirmed_is_asked_again_and_remains_unknown():
    world = one((0, Mood.UNSURE))
    call = world.start(requeue(timeout_s=3.0))

    world.run()

    assert call.tries > 1
    assert isinstance(call.error, NotConfirmed)
    assert call.error.stored == "unknown"


def test_a_final_refusal_ends_a_call_at_once():
    core = Core(["a"], lambda: 0.0)
    call = requeue()
    _send(core, call, now=0.0)

    assert core.received(protocol.refusal(call.rid, InvalidRequest("id: bad", field="id")), 0.1) is call

    error = the_error(call)
    assert isinstance(error, InvalidRequest)
    assert (error.field, error.id) == ("id", "task")


def test_a_broker_that_refuses_is_left_for_another_when_the_rest_is_over():
    core = Core(["a", "b"], lambda: 0.0)
    first, second = requeue("first"), requeue("second")
    _send(core, first, now=0.0)
    _send(core, second, now=0.0)
    core.received(protocol.refusal(first.rid, Unavailable("no Redis", retry_after_s=0.5)), 0.1)
    assert core.endpoint == "a", "others may still get their reply from it"

    core.tick(0.6)

    assert core.closed
    assert core.endpoint == "b"


@pytest.mark.parametrize(("op", "stays"), [("submit", True), ("ping", False)])
def test_one_that_refuses_this_and_serves_others_is_kept(op: str, stays: bool):
    core = Core(["a", "b"], lambda: 0.0)
    refused, served = requeue(), Call(op, {}, 10.0)
    _send(core, refused, now=0.0)
    _send(core, served, now=0.0)
    core.received(protocol.refusal(refused.rid, Busy("queue: full", retry_after_s=0.5)), 0.1)
    core.received(protocol.ok(served.rid, {}), 0.2)

    core.tick(0.6)

    assert core.closed is not stays


def test_replies_to_nobody_change_nothing():
    core = Core(["a"], lambda: 0.0)
    call = requeue()
    _send(core, call, now=0.0)
    reply = protocol.ok(call.rid, {})
    strangers = [
        protocol.ok(999, {}),
        protocol.ok("1", {}),
        protocol.ok(None, {}),
        wire.pack({"v": 1, "rid": [1], "ok": True}),
        reply[:-1],
        wire.pack([1, 2]),
        b"",
        b"HTTP/1.1 400 Bad Request",
    ]
    assert [core.received(frame, 0.1) for frame in strangers] == [None] * len(strangers)

    assert core.received(reply, 0.2) is call
    assert core.received(reply, 0.3) is None, "a repeated reply"


def test_an_abandoned_call_is_forgotten_and_its_reply_passed_over():
    core = Core(["a"], lambda: 0.0)
    call = requeue()
    _send(core, call, now=0.0)

    core.abandon(call)

    assert core.received(protocol.ok(call.rid, {}), 0.1) is None
    assert (core.pending, core.next_at()) == (0, inf)


@pytest.mark.parametrize(
    ("args", "what"),
    [([object()], "object"), (["\ud800"], "surrogate"), (["x" * 4_200_000], "at most"), ([2**70], "int")],
)
def test_what_has_no_form_on_the_wire_is_refused_before_anything_is_sent(args, what):
    core = Core(["a"], lambda: 0.0)
    call = Call("submit", {"task": {"args": args}}, 10.0)

    assert not core.start(call, 0.0)

    assert isinstance(call.error, InvalidRequest)
    assert what in str(call.error).lower()
    assert core.pending == 0


def test_a_wait_is_not_overdue_before_its_time_and_outlives_a_restart_of_its_broker():
    world = one((0, Mood.MUTE), (20, Mood.DEAD), (24, Mood.WELL))
    call = Call("wait", {"id": "task", "timeout_s": 30.0}, inf, silence_s=10.0)
    world.start(call)

    world.run(until=19.9)
    assert len(world.brokers[0].seen) == 1

    world.run()
    assert call.reply


def test_a_wait_ends_when_no_broker_was_there_for_as_long_as_the_client_allows():
    world = one((0, Mood.MUTE), (20, Mood.DEAD))
    call = Call("wait", {"id": "task", "timeout_s": 30.0}, inf, silence_s=10.0)
    world.start(call)

    world.run()

    assert isinstance(call.error, NoAnswer)
    assert world.done[0][0] == pytest.approx(30.0)


def test_a_wait_ends_when_its_broker_hangs():
    world = one((0, Mood.MUTE))
    call = Call("wait", {"id": "task", "timeout_s": 30.0}, inf, silence_s=10.0)
    world.start(call)

    world.run()

    assert isinstance(call.error, NoAnswer)
    assert world.done[0][0] == pytest.approx(40.0, abs=0.1)


def test_a_rest_before_the_first_try_is_kept():
    core = Core(["a"], lambda: 0.0)
    call = Call("ping", {}, 10.0, delay_s=0.5)
    core.start(call, 0.0)
    assert core.next_to_send() is None

    core.tick(0.5)

    assert core.next_to_send() is call


def test_calls_without_end_are_retried_without_end():
    world = one((0, Mood.BUSY), (5000, Mood.DEAD), (10_000, Mood.WELL))
    call = world.start(requeue(timeout_s=inf))

    world.run()

    assert call.reply
    assert world.done[0][0] == pytest.approx(10_000, abs=3)


# ── what the error says ──────────────────────────────────────────────────────────────────────────────────────────────


def test_no_connection_means_that_nothing_is_stored():
    world = one((0, Mood.DEAD))
    call = world.start(Call("submit", {"task": {}}, 5.0, about="some-id"))

    world.run()

    error = the_error(call)
    assert isinstance(error, NoAnswer)
    assert error.stored == "no"
    assert all(part in str(error) for part in ("broker0", "5 s", "no connection", "Nothing was stored"))


def test_no_reply_means_that_it_may_be_stored_and_under_which_id():
    world = one((0, Mood.MUTE))
    call = world.start(Call("submit", {"task": {}}, 5.0, about="some-id"))

    world.run()

    error = the_error(call)
    assert isinstance(error, NoAnswer)
    assert (error.stored, error.id) == ("unknown", "some-id")
    assert all(part in str(error) for part in ("broker0", "it was sent", "may be stored", "some-id"))


def test_reading_stores_nothing():
    world = one((0, Mood.MUTE))
    call = world.start(Call("stats", {}, 5.0))

    world.run()

    assert the_error(call).stored == "no"
    assert "stored" not in str(call.error)


def test_something_else_on_that_port_is_named():
    core = Core(["a"], lambda: 0.0)
    call = requeue(timeout_s=1.0)
    _send(core, call, now=0.0)
    core.received(b"SSH-2.0-OpenSSH_9.6", 0.1)

    core.tick(1.0)

    assert "not msgpack" in str(call.error)


def _send(core: Core, call: Call, *, now: float) -> None:
    assert core.start(call, now)
    if core.closed:
        core.opened(now)
        core.up()
    assert core.next_to_send() is call
    core.sent(now)
