"""Many seeds, and what to print of one that fails."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from hashlib import sha256

from tests.simulator.ledger import Violation
from tests.simulator.story import SimulationRun
from tests.store.model import Model

SHOWN = 200
"""Last lines of a failing seed's trace."""


def failure(seed: int, *, model: type[Model] = Model) -> str | None:
    """What is wrong in the story of a seed, with its trace; None if nothing is."""
    story = SimulationRun(seed, model=model)
    try:
        story.run()
    except Violation as violation:
        what = f"seed {seed}: {violation}"
    except Exception:  # noqa: BLE001  (whatever the product raises is a finding)
        what = f"seed {seed}: {traceback.format_exc()}"
    else:
        return None
    return "\n".join([what, *_lines(story)[-SHOWN:], what])


def many(seeds: Iterable[int], *, model: type[Model] = Model) -> Iterator[str]:
    """What is wrong, seed by seed."""
    for seed in seeds:
        found = failure(seed, model=model)
        if found is not None:
            yield found


def digest(seeds: Iterable[int]) -> str:
    """Of all that happens in these stories."""
    found = sha256()
    for seed in seeds:
        story = SimulationRun(seed)
        story.run()
        found.update("\n".join(_lines(story)).encode())
    return found.hexdigest()


def _lines(story: SimulationRun) -> list[str]:
    return [f"{now:9.4f} {' '.join(map(str, what))}" for now, *what in story.world.trace]
