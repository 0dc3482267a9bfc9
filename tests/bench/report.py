"""The tables, in Markdown, and the JSON file with every figure of every round."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import contestants, scenarios
from tests.bench.figures import Found
from tests.bench.run import Measurement
from tests.bench.targets import PerformanceTarget, targets

REFERENCES = ("list", "echo", "function", "hops", "spawn")
"""Ratios are taken to the first of these that has the figure, else to kingtask."""

RATED = ("/s", " ms", "bytes per task")
"""Ends of the names of figures that a ratio says something about."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    machine: Mapping[str, str]
    missing: Mapping[str, str]
    """Contestants that could not be installed, and why."""
    rows: Sequence[Measurement]

    def markdown(self) -> str:
        about = [f"{name} {value}" for name, value in self.machine.items()]
        parts = ["; ".join(about) + ".", self._settings()]
        parts += [self._table(name, durability) for name, durability in self._tables()]
        parts += [self._targets(durability) for durability in dict.fromkeys(row.durability for row in self.rows)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def save(self, path: Path) -> None:
        content = {
            "machine": self.machine,
            "missing": self.missing,
            "rows": [row.as_json() for row in self.rows],
            "targets": {
                durability: {
                    target.what: {"bound": target.bound, "least": target.least, "found": target.found(found)}
                    for target in self._all_targets()
                }
                for durability, found in self._by_durability().items()
            },
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    def _settings(self) -> str:
        found = {row.contestant: row for row in self.rows if row.config}
        lines = []
        for name in (name for name in contestants.ALL if name in found):
            versions = ", ".join(f"{package} {version}" for package, version in found[name].versions.items())
            lines.append([name, contestants.ALL[name].kind, versions or "–", found[name].config])
        for name, why in self.missing.items():
            lines.append([name, "missing", "–", why.replace("|", "/")])
        return markdown_table(["contestant", "kind", "versions", "configuration"], lines)

    def _tables(self) -> list[tuple[str, str]]:
        present = dict.fromkeys((row.scenario, row.durability) for row in self.rows)
        return [(name, durability) for name in scenarios.ALL for one, durability in present if one == name]

    def _table(self, scenario: str, durability: str) -> str:
        rows = [row for row in self.rows if (row.scenario, row.durability) == (scenario, durability)]
        order = [*contestants.ALL]
        found = Found(sorted(rows, key=lambda row: order.index(row.contestant)))
        lines = []
        for name in found.contestants:
            failed = f" ({found.failed[name]} failed)" if name in found.failed else ""
            lines.append([name + failed, *(_cell(found, name, figure) for figure in found.figures)])
        rounds = len({row.round for row in rows})
        title = f"### {scenario}: {durability}"
        told = f"{scenarios.ALL[scenario].about} {rounds} round{'s' * (rounds > 1)} at most."
        return f"{title}\n\n{told}\n\n{markdown_table(['', *found.figures], lines)}"

    def _by_durability(self) -> dict[str, dict[str, Found]]:
        found: dict[str, dict[str, Found]] = {}
        for scenario, durability in self._tables():
            rows = [row for row in self.rows if (row.scenario, row.durability) == (scenario, durability)]
            found.setdefault(durability, {})[scenario] = Found(rows)
        return found

    def _all_targets(self) -> Iterable[PerformanceTarget]:
        return targets("valkey" in self.machine.get("server", "").lower())

    def _targets(self, durability: str) -> str:
        found = self._by_durability()[durability]
        lines = []
        for target in self._all_targets():
            value = target.found(found)
            if value is None:
                continue
            bound = f"{'≥' if target.least else '≤'} {target.bound:g}"
            lines.append([target.what, bound, short(value), "yes" if target.reached(found) else "**no**"])
        if not lines:
            return ""
        table = markdown_table(["", "bound", "found", "reached"], lines)
        return f"### What kingtask must reach: {durability}\n\n{table}"


def _cell(found: Found, name: str, figure: str) -> str:
    values = found.all(name, figure)
    median = found.median(name, figure)
    if median is None:
        return "–"
    text = short(median)
    low, high = short(min(values)), short(max(values))
    if low != high:
        text += f" ({low} – {high})"
    reference = next((one for one in REFERENCES if found.has(one, figure)), "kingtask")
    ratio = found.ratio(name, figure, reference)
    if ratio is not None and name != reference and figure.endswith(RATED):
        text += f" [{short(ratio)}×]"
    return text


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
