"""Every kind of key in Redis: the tests walk the keyspace and accept no other."""

from __future__ import annotations

import re

KEY_PATTERNS = {
    "task": re.compile(r"task:[0-9a-f-]{36}"),
    "schedule": re.compile(r"schedule"),
    "ready": re.compile(r"ready:[^{}:]+"),
    "running": re.compile(r"running"),
    "expiry": re.compile(r"expiry"),
    "owned": re.compile(r"owned:[^{}:]+"),
    "named": re.compile(r"named:[^{}:]+"),
    "held": re.compile(r"held:[^{}:]+"),
    "finished": re.compile(r"finished:(succeeded|failed|cancelled|expired)"),
    "outputs": re.compile(r"outputs:(ended|until)"),
    "kept": re.compile(r"kept(:[^{}:]+)?"),
    "queues": re.compile(r"queues"),
    "counts": re.compile(r"counts:[^{}:]+"),
    "workers": re.compile(r"workers(:seen)?"),
    "brokers": re.compile(r"brokers(:seen)?"),
    "meta": re.compile(r"meta"),
}
"""The names behind the prefix."""
