"""claim: strict queue order, and the same answer when it is sent again."""

from __future__ import annotations

from kingtask.policy import Policy
from kingtask.states import State
from kingtask.store import codec, functions
from kingtask.store.functions import Fence
from tests.store.listener import ChannelListener
from tests.store.syncstore import START_MS, TimedStore

LEASE_MS = Policy().lease_ms


def claim(store: TimedStore, n: int, *queues: str) -> functions.Claims:
    found: functions.Claims = store.ask(
        functions.claim(store.policy, "w1", functions.ClaimRequest(queues or ["default"], n, store.new_token(), 1))
    )
    return found


def test_a_claim_publishes_the_hints_that_it_follows_whether_or_not_it_gets_a_task(store: TimedStore) -> None:
    def hinted(hints: str, nth: int) -> functions.ClaimRequest:
        return functions.ClaimRequest(["default"], 1, store.new_token(), nth, hints)

    listener = ChannelListener(store)
    store.ask(functions.claim(store.policy, "w1", hinted("a b", 1)))
    store.ask(functions.claim(store.policy, "w1", hinted("", 2)))
    fence = Fence(store.put(), 1, store.new_token())
    store.claim(token=fence.token, nth=3)
    store.finish_and_claim(store.ended(fence), claim=hinted("c", 4))
    assert [text for what, text in listener.heard() if what == "claimed"] == ["a b", "c"]
    listener.close()


def test_what_a_worker_gets(store: TimedStore) -> None:
    task = store.put(args=("a b",), stdin=b"\x00\xff", env={"K": "v"}, time_limit_s=2.5, stderr="keep", tags=("t",))
    store.pass_ms(7)
    (claimed,) = store.claim(worker="w1")
    assert claimed[:2] == (task, 1)
    assert (claimed.name, claimed.queue, claimed.fail_if_lost) == ("example", "default", False)
    assert (claimed.due_ms, claimed.claimed_ms) == (START_MS, START_MS + 7)
    execution = codec.unpack_spec(claimed.spec)
    assert execution == (("a b",), b"\x00\xff", {"K": "v"}, 2500, "keep", ("t",))
    result = store.get(task)
    assert (result.state, result.worker, result.attempt) == (State.RUNNING, "w1", 1)
    assert result.started_at == (START_MS + 7) / 1000


def test_the_due_instant_of_a_scheduled_task_is_the_one_asked_for(store: TimedStore) -> None:
    store.put(delay_s=1.0, on_lost="fail")
    store.pass_ms(1500)
    store.tick()
    (claimed,) = store.claim()
    assert (claimed.due_ms, claimed.claimed_ms, claimed.fail_if_lost) == (START_MS + 1000, START_MS + 1500, True)


def test_queues_in_strict_order(store: TimedStore) -> None:
    low = [store.put(queue="low", priority=9) for _ in range(3)]
    high = [store.put(queue="high", priority=0) for _ in range(3)]
    assert [task.id for task in store.claim(4, queues=["high", "low"])] == [*high, low[0]]
    assert [task.id for task in store.claim(4, queues=["high", "low"])] == low[1:]
    assert store.claim(4, queues=["high", "low", "unknown"]) == []


def test_only_the_queues_asked_for(store: TimedStore) -> None:
    store.put(queue="other")
    assert store.claim(5) == []
    assert store.claim(5, queues=[]) == []
    assert store.claim(0, queues=["other"]) == []


def test_a_paused_queue_gives_nothing_until_it_is_resumed(store: TimedStore) -> None:
    held_up, other = store.put(queue="a"), store.put(queue="b")
    store.pause("a")
    assert [task.id for task in store.claim(5, queues=["a", "b"])] == [other]
    store.pause("a", paused=False)
    assert [task.id for task in store.claim(5, queues=["a", "b"])] == [held_up]


def test_each_task_is_given_once(store: TimedStore) -> None:
    ids = {store.put() for _ in range(10)}
    first, second = store.claim(6, worker="w1"), store.claim(6, worker="w2")
    assert (len(first), len(second)) == (6, 4)
    assert {task.id for task in first + second} == ids


def test_too_late_to_start_expires_instead(store: TimedStore) -> None:
    late = [store.put(expires_at=START_MS / 1000 + 1) for _ in range(3)]
    good = store.put(expires_at=START_MS / 1000 + 2)
    store.pass_ms(1000)
    assert [task.id for task in store.claim(2)] == [good]
    assert {store.state(task) for task in late} == {"expired"}


def test_expired_ones_count_towards_the_bound_of_a_call(store: TimedStore) -> None:
    for _ in range(2):
        store.submit(*(store.spec(expires_at=START_MS / 1000 + 1) for _ in range(150)))
    good = store.put()
    store.pass_ms(1000)
    first, second = claim(store, 5), claim(store, 5)
    assert (first.tasks, first.more) == ([], True)
    assert ([task.id for task in second.tasks], second.more) == ([good], False)


def test_a_call_gives_200_at_most(store: TimedStore) -> None:
    for _ in range(2):
        store.submit(*(store.spec() for _ in range(150)))
    claims = [claim(store, 1000) for _ in range(3)]
    assert [(len(found.tasks), found.more) for found in claims] == [(200, True), (100, False), (0, False)]


def test_a_call_ends_after_a_mebibyte_of_specs(store: TimedStore) -> None:
    """A reply of 200 tasks at 2 MiB each would hold Redis up for all; the worker claims again."""
    tasks = [store.put(stdin=bytes(400_000)) for _ in range(5)]
    other = store.put(queue="other")
    first, second = claim(store, 6, "default", "other"), claim(store, 6, "default", "other")
    assert ([task.id for task in first.tasks], first.more) == (tasks[:3], True)
    assert ([task.id for task in second.tasks], second.more) == ([*tasks[3:], other], False)


# ── sent again ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_claim_sent_again_gets_what_it_got(store: TimedStore) -> None:
    for _ in range(5):
        store.put(args=("x",), on_lost="fail")
    token = store.new_token()
    first = store.claim(2, token=token)
    store.pass_ms(100)
    assert sorted(store.claim(3, token=token, again=True)) == sorted(first)
    assert len(store.claim(5)) == 3, "nothing more was taken"


def test_a_claim_sent_again_renews_what_it_got(store: TimedStore) -> None:
    """The worker counts the lease from the call that was answered, and may start what it got."""
    store.put()
    token = store.new_token()
    store.claim(token=token)
    store.pass_ms(LEASE_MS - 1)
    store.tick()
    store.claim(token=token, again=True)
    store.pass_ms(1)
    assert store.tick().lost == []


def test_a_claim_that_got_nothing_is_a_new_one_when_sent_again(store: TimedStore) -> None:
    token = store.new_token()
    assert store.claim(token=token) == []
    task = store.put()
    assert [claimed.id for claimed in store.claim(token=token, again=True)] == [task]


def test_sent_again_it_gets_neither_other_claims_nor_other_workers_tasks(store: TimedStore) -> None:
    mine, others = store.new_token(), store.new_token()
    tasks = [store.put() for _ in range(4)]
    store.claim(1, token=others)
    store.claim(1, token=mine)
    store.claim(1, worker="w2", token=mine)
    assert [claimed.id for claimed in store.claim(5, token=mine, again=True)] == [tasks[1]]


def test_sent_again_after_the_attempts_were_lost_it_claims_anew(store: TimedStore) -> None:
    store.tick()
    task, token = store.put(), store.new_token()
    store.claim(token=token)
    for _ in range(16):
        store.pass_ms(1000)
        store.tick()
    (claimed,) = store.claim(token=token, again=True)
    assert (claimed.id, claimed.number) == (task, 2)
    assert store.end(Fence(task, 1, token)) == "fenced"
    assert store.end(Fence(task, 2, token)) == "succeeded"


def test_a_claim_that_arrives_late_is_not_lost(store: TimedStore) -> None:
    """It ran after its socket was closed and its repetition had been answered: extend hands back what it took."""
    first, second = store.put(), store.put()
    token = store.new_token()
    (claimed,) = store.claim(token=token, again=True)
    store.claim(token=token)
    fence = Fence(claimed.id, 1, token)
    assert store.extend(fence) == ["ok"]
    assert [store.state(task) for task in (first, second)] == ["running", "ready"]
