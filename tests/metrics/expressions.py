"""What is shipped for Prometheus and Grafana, and the names in its expressions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TOP = Path(__file__).parents[2]
ALERTS = TOP / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = TOP / "deploy" / "grafana" / "kingtask.json"


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return content


def queries() -> Iterator[tuple[str, str]]:
    """Title of the panel, and the expression as Grafana sends it when all is chosen."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], text.replace("$job", ".+").replace("$queue", ".+")


def names(expression: str) -> set[str]:
    """Of metrics: words that are no function, label or keyword are all of these forms."""
    return set(re.findall(r"\b(?:kingtask|process)_[a-z_]+|\bup\b", re.sub(r'"[^"]*"', "", expression)))


def family_of(name: str, known: set[str]) -> str:
    """The histogram that a series belongs to; the name itself for everything else."""
    base = re.sub(r"_(bucket|count|sum)\Z", "", name)
    return base if name not in known and base in known else name
