"""One scrape as Prometheus does it, and what it says."""

from __future__ import annotations

import http.client
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def ask(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


class Figures:
    """The samples of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = list(text_string_to_metric_families(text))
        self.helps = {family.name: family.documentation for family in families}
        self.samples: list[Sample] = [sample for family in families for sample in family.samples]
        self.heads = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        """Names, also of what has no samples yet."""

    def all(self, name: str, /, **labels: str) -> Iterable[float]:
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample.value

    def __call__(self, name: str, /, **labels: str) -> float:
        """The one sample of that name and those labels; fails if there are none or several."""
        (value,) = self.all(name, **labels)
        return value

    def sum(self, name: str, /, **labels: str) -> float:
        return sum(self.all(name, **labels))


def scrape(address: str) -> Figures:
    status, text = ask(address, "/metrics")
    assert status == 200, text
    return Figures(text)
