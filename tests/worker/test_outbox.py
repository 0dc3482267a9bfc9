"""Ends on their way: in batches, until they are confirmed, shortened for a full Redis."""

from __future__ import annotations

import pytest

from kingtask.store.functions import CUT_BYTES, EndedTask, Fence
from kingtask.worker.outbox import MAX_BYTES, MAX_ITEMS, Finish, Outbox, Release


def fence(number: int) -> Fence:
    return Fence(f"t{number}", 1, b"token")


def ended(number: int, stdout: int = 0, stderr: int = 0) -> EndedTask:
    return EndedTask(fence(number), "failed", "exit", b"", b"o" * stdout, b"e" * stderr, stdout, stderr)


def filled(*reports: EndedTask) -> Outbox:
    outbox = Outbox()
    for report in reports:
        outbox.add(report.fence, report)
    return outbox


def test_the_end_of_what_may_be_started_only_once_is_kept_until_it_is_confirmed() -> None:
    outbox = Outbox()
    outbox.add(fence(1), ended(1), once=True)
    outbox.add(fence(2), ended(2))
    outbox.add(fence(3), b"released", once=True)  # it was not started
    outbox.take()
    assert outbox.answered([fence(1), fence(2), fence(3)]) == [fence(1)]
    assert list(outbox.fences) == [fence(1)]
    outbox.not_confirmed([fence(1)], full=False)
    outbox.retry()
    assert outbox.take() == [Finish([ended(1)], False)]
    assert outbox.answered([fence(1)]) == [fence(1)]
    outbox.confirmed([fence(1)])
    assert len(outbox) == 0


def test_sent_once_until_it_fails_and_kept_until_it_is_confirmed() -> None:
    outbox = filled(ended(1), ended(2))
    assert outbox.take() == [Finish([ended(1), ended(2)], False)]
    outbox.retry()
    assert outbox.take() == []
    outbox.not_confirmed([fence(1)], full=False)
    assert outbox.take() == []
    outbox.retry()
    assert outbox.take() == [Finish([ended(1)], False)]
    outbox.confirmed([fence(1), fence(2)])
    outbox.retry()
    assert (outbox.take(), len(outbox), list(outbox.fences)) == ([], 0, [])


def test_ends_and_what_is_handed_back_travel_apart() -> None:
    outbox = filled(ended(1))
    outbox.add(fence(2), b"record")
    assert outbox.take() == [Finish([ended(1)], False), Release([(fence(2), b"record")])]
    outbox.not_confirmed([fence(2)], full=True)  # nothing to shorten there
    outbox.retry()
    assert outbox.take() == [Release([(fence(2), b"record")])]


def test_batches_by_number() -> None:
    outbox = filled(*(ended(i) for i in range(2 * MAX_ITEMS + 1)))
    for i in range(MAX_ITEMS + 1):
        outbox.add(fence(1000 + i), b"")
    calls = outbox.take()
    assert [len(call.ended) for call in calls if isinstance(call, Finish)] == [MAX_ITEMS, MAX_ITEMS, 1]
    assert [len(call.attempts) for call in calls if isinstance(call, Release)] == [MAX_ITEMS, 1]


def test_batches_by_size() -> None:
    third = MAX_BYTES // 3
    outbox = filled(*(ended(i, stdout=third // 2, stderr=third // 2) for i in range(7)))
    outbox.add(fence(7), ended(7, stdout=MAX_BYTES + 1))
    outbox.add(fence(8), ended(8))
    calls = outbox.take()
    assert [[row.fence for row in call.ended] for call in calls if isinstance(call, Finish)] == [
        [fence(0), fence(1), fence(2)],
        [fence(3), fence(4), fence(5)],
        [fence(6)],
        [fence(7)],  # one alone may be larger
        [fence(8)],
    ]


@pytest.mark.parametrize(
    ("stdout", "stderr", "kept"),
    [
        (100_000, 100_000, (CUT_BYTES // 2, CUT_BYTES // 2)),
        (100_000, 10, (CUT_BYTES - 10, 10)),
        (10, 100_000, (10, CUT_BYTES - 10)),
        (100_000, 0, (CUT_BYTES, 0)),
        (7, 8, (7, 8)),
    ],
)
def test_a_full_redis_takes_short_outputs(stdout: int, stderr: int, kept: tuple[int, int]) -> None:
    outbox = filled(ended(1, stdout, stderr))
    outbox.take()
    outbox.not_confirmed([fence(1)], full=True)
    (call,) = outbox.take()
    assert isinstance(call, Finish)
    assert call.cut
    (row,) = call.ended
    assert (len(row.stdout), len(row.stderr)) == kept
    assert (row.stdout_size, row.stderr_size) == (stdout, stderr)
    outbox.not_confirmed([fence(1)], full=True)
    assert outbox.take() == []  # not in a circle
    outbox.retry()
    assert outbox.take() == [call]
