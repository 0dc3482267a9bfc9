"""What every daemon tells of itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from kingtask import __version__
from kingtask.metrics.family import Family, counters, facts


def families(
    program: str, name: str, namespace: str, log_lines: Mapping[str, int], reloads: Mapping[str, int]
) -> list[Family]:
    """`name`: what it calls itself in logs and to the others; `log_lines` by level, `reloads` by outcome."""
    return [
        facts(
            "kingtask_build_info",
            "Which release this is, and who.",
            {
                "program": program,
                "name": name,
                "namespace": namespace,
                "version": __version__,
                "python": platform.python_version(),
            },
        ),
        counters("kingtask_log_lines_total", "Lines of the log.", "level", log_lines),
        counters("kingtask_reloads_total", "Times that the configuration was read anew.", "outcome", reloads),
    ]
