"""Rows put together: medians over the rounds, and ratios as medians of the ratios within each round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.bench.run import Measurement


class Found:
    """The figures of all rows that are about the same scenario on the same kind of server."""

    def __init__(self, rows: Sequence[Measurement]) -> None:
        self._values: dict[tuple[str, str], dict[int, float]] = {}
        most = sorted(rows, key=lambda row: len(row.figures), reverse=True)  # in its order those of the others stand
        self.figures = list(dict.fromkeys(figure for row in most for figure in row.figures))
        self.contestants: list[str] = []
        self.failed: dict[str, int] = {}
        for row in rows:
            if row.contestant not in self.contestants:
                self.contestants.append(row.contestant)
            if row.error:
                self.failed[row.contestant] = self.failed.get(row.contestant, 0) + 1
            for figure, value in row.figures.items():
                self._values.setdefault((row.contestant, figure), {})[row.round] = value

    def has(self, contestant: str, figure: str) -> bool:
        return (contestant, figure) in self._values

    def all(self, contestant: str, figure: str) -> list[float]:
        """One for each round that has it."""
        return list(self._values.get((contestant, figure), {}).values())

    def median(self, contestant: str, figure: str) -> float | None:
        values = self.all(contestant, figure)
        return statistics.median(values) if values else None

    def ratio(self, contestant: str, figure: str, reference: str, its_figure: str = "") -> float | None:
        """To what another one reached in the same rounds (or, if they share none, the ratio of the medians)."""
        mine = self._values.get((contestant, figure), {})
        its = self._values.get((reference, its_figure or figure), {})
        within = [value / its[nth] for nth, value in mine.items() if its.get(nth)]
        if within:
            return statistics.median(within)
        over, under = self.median(contestant, figure), self.median(reference, its_figure or figure)
        return over / under if over is not None and under else None
