"""Ends on their way to Redis: kept until they are confirmed, sent in batches, sent again after a failure. Pure.

Sending again is safe: what Redis has recorded under a fence it answers `recorded`, what was given away `fenced`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from kingtask.store.functions import CUT_BYTES, EndedTask, Fence
from kingtask.worker.exec.capture import shorten

MAX_ITEMS = 200
MAX_BYTES = 1_048_576
"""Bounds of one call, which blocks the server while it runs. One attempt alone may exceed them."""

Report = EndedTask | bytes
"""How an attempt ended, or the record to hand it back with."""


class Finish(NamedTuple):
    ended: list[EndedTask]
    cut: bool
    """With outputs so short that a full Redis takes them."""


class Release(NamedTuple):
    attempts: list[tuple[Fence, bytes]]


@dataclass(slots=True)
class _Item:
    report: Report
    failed: bool = False
    """Sent in vain: to be sent again at the next look."""
    cut: bool = False
    queue: str = ""
    once: bool = False
    """It must not be forgotten by a failover: what has no end in Redis and is not held here is started again."""


class Outbox:
    """Reports by fence."""

    def __init__(self) -> None:
        self._items: dict[Fence, _Item] = {}
        self._due: list[Fence] = []

    def __len__(self) -> int:
        """Reports that Redis has not confirmed."""
        return len(self._items)

    @property
    def fences(self) -> Collection[Fence]:
        return self._items.keys()

    def queue_of(self, fence: Fence) -> str:
        """Empty if it is settled."""
        item = self._items.get(fence)
        return "" if item is None else item.queue

    def add(self, fence: Fence, report: Report, *, queue: str = "", once: bool = False) -> None:
        """`once`: it may be started only once, so its end is settled when it is stored at the level of `ack`."""
        self._items[fence] = _Item(report, queue=queue, once=once and isinstance(report, EndedTask))
        self._due.append(fence)

    def look(self) -> None:
        """Send again what failed."""
        for fence, item in self._items.items():
            if item.failed:
                item.failed = False
                self._due.append(fence)

    def answered(self, fences: Iterable[Fence]) -> list[Fence]:
        """Redis answered, whatever it answered; return those that are not settled by that alone."""
        unsure = [fence for fence in fences if fence in self._items and self._items[fence].once]
        self.confirmed(set(fences).difference(unsure))
        return unsure

    def confirmed(self, fences: Iterable[Fence]) -> None:
        """These are settled."""
        for fence in fences:
            self._items.pop(fence, None)

    def not_confirmed(self, fences: Iterable[Fence], *, full: bool) -> None:
        """A call failed. `full`: Redis has no memory left; it takes an outcome with short outputs."""
        for fence in fences:
            item = self._items[fence]
            if full and isinstance(item.report, EndedTask) and not item.cut:
                item.report, item.cut = _cut(item.report), True
                self._due.append(fence)
            else:
                item.failed = True

    def take(self) -> list[Finish | Release]:
        """What is due, in calls of a bounded size; it is not due again until a call has failed."""
        if not self._due:
            return []
        due = [self._items[fence] for fence in self._due]
        given_back = [(fence, report) for fence in self._due if isinstance(report := self._items[fence].report, bytes)]
        self._due = []
        return [
            *_finishes([item.report for item in due if isinstance(item.report, EndedTask) and not item.cut], cut=False),
            *_finishes([item.report for item in due if isinstance(item.report, EndedTask) and item.cut], cut=True),
            *(Release(given_back[i : i + MAX_ITEMS]) for i in range(0, len(given_back), MAX_ITEMS)),
        ]


def _finishes(reports: list[EndedTask], *, cut: bool) -> list[Finish]:
    batches: list[Finish] = []
    size = 0
    for report in reports:
        more = len(report.stdout) + len(report.stderr) + len(report.record)
        if not batches or len(batches[-1].ended) == MAX_ITEMS or size + more > MAX_BYTES:
            batches.append(Finish([], cut))
            size = 0
        batches[-1].ended.append(report)
        size += more
    return batches


def _cut(ended: EndedTask) -> EndedTask:
    """With outputs of CUT_BYTES together, as much of stderr as stdout leaves room for, and the reverse."""
    half = CUT_BYTES // 2
    stdout = shorten(ended.stdout, max(half, CUT_BYTES - len(ended.stderr)))
    return ended._replace(stdout=stdout, stderr=shorten(ended.stderr, CUT_BYTES - len(stdout)))
