"""Pass 6: what lies in Redis after the drain (I3, I11)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from kingtask.states import TERMINAL
from tests.faults.history import Key
from tests.faults.story import TaskHistory
from tests.faults.view import CheckContext
from tests.store.key_patterns import KEY_PATTERNS

WITH_TTL = frozenset({"held"})
BOUNDED = frozenset(
    "schedule ready running expiry finished outputs queues counts workers brokers meta owned named kept".split()
)
"""Kinds of keys that have no TTL, and must not have one."""
LISTED = 10_000
"""Entries of each `finished:<state>`, of which older ones are forgotten."""


class _Dump:
    """A dump by what its keys mean."""

    def __init__(self) -> None:
        self.ttl_ms: dict[str, int] = {}
        """Of each task."""
        self.places: dict[str, list[str]] = defaultdict(list)
        """Of each waiting or running task, the indexes that name it."""
        self.aside: dict[str, list[str]] = defaultdict(list)
        """Likewise for indexes that only accompany those: expiry, held, owned."""
        self.finished: dict[str, list[str]] = defaultdict(list)
        self.full: set[str] = set()
        """Terminal states whose list is full."""
        self.counted: dict[str, int] = {}
        """What the counters say is scheduled, running or living."""


def judge_dump(view: CheckContext, stories: dict[str, TaskHistory], keys: Iterable[Key]) -> None:
    dump = _Dump()
    for key in keys:
        _classify(view, dump, key)
    if not dump.ttl_ms:
        if any(story.last for story in stories.values()):
            view.report.doubt("the dump of Redis has no task")
        return
    if view.run.drained_ns:  # before, tasks move while they are dumped
        _places(view, dump, stories)
        _known(view, dump, stories)


def _classify(view: CheckContext, dump: _Dump, key: Key) -> None:
    if KEY_PATTERNS["task"].fullmatch(key.key):  # most are
        dump.ttl_ms[key.key.removeprefix("task:")] = key.ttl_ms
        return
    kinds = [kind for kind, pattern in KEY_PATTERNS.items() if pattern.fullmatch(key.key)]
    if len(kinds) != 1:
        view.report.found("I11", f"{key.key}: a key of {len(kinds)} kinds")
        return
    kind, rest = kinds[0], key.key.partition(":")[2]
    if (key.ttl_ms >= 0) != (kind in WITH_TTL):
        view.report.found("I11", f"{key.key} has {'a' if key.ttl_ms >= 0 else 'no'} TTL")
    members = key.members or {}
    if kind in ("schedule", "ready", "running"):
        into = dump.places
    elif kind in ("expiry", "held", "owned"):
        into = dump.aside
    elif kind == "finished":
        into = dump.finished
        if max(key.size, len(members)) >= LISTED:
            dump.full.add(rest)
    else:
        if kind == "counts":
            dump.counted |= {f"{rest} {what}": int(members.get(what, 0)) for what in ("scheduled", "running")}
        elif kind == "meta":
            dump.counted["live"] = int(members.get("live", 0))
        return
    for member in members:
        into[member].append(key.key)


def _places(view: CheckContext, dump: _Dump, stories: dict[str, TaskHistory]) -> None:
    """Each task either waits or runs, in one index, without a TTL, or has ended, and has one."""
    for task_id, places in dump.places.items():
        if len(places) > 1:
            view.report.found("I11", f"{task_id} is in {' and in '.join(places)}")
        if task_id not in dump.ttl_ms:
            view.report.found("I11", f"{places[0]} names {task_id}, which does not exist")
        if task_id in stories and stories[task_id].outcome is not None:
            view.report.found("I11", f"{places[0]} names {task_id}, which has ended")
    for task_id, places in dump.aside.items():
        if task_id not in dump.places:
            view.report.found("I11", f"{places[0]} names {task_id}, which neither waits nor runs")
    for task_id, ttl_ms in dump.ttl_ms.items():
        if ttl_ms < 0 and task_id not in dump.places:
            view.report.found("I11", f"{task_id} has no TTL, and no index names it")
        elif ttl_ms >= 0 and task_id in dump.places:
            view.report.found("I11", f"{task_id} waits or runs, and has a TTL")
    for what, n in dump.counted.items():
        if n and not dump.places:
            view.report.found("I11", f"counters say that {n} are left: {what}")


def _known(view: CheckContext, dump: _Dump, stories: dict[str, TaskHistory]) -> None:
    """The dump and the API tell the same of each task."""
    for task_id, lists in dump.finished.items():
        if len(lists) > 1:
            view.report.found("I3", f"{task_id} is in {' and in '.join(lists)}")
    for story in stories.values():
        if story.last is None:
            if story.gone and story.id in dump.ttl_ms:
                view.report.found("I11", f"{story.id} is in Redis, but the API does not know it")
            continue
        if story.id not in dump.ttl_ms:
            view.report.found("I11", f"{story.id} is told by the API, but is not in the dump")
        state = story.last.state
        lists = dump.finished.get(story.id, [])
        if state in TERMINAL and state not in dump.full and f"finished:{state}" not in lists:
            view.report.found("I11", f"{story.id} is {state}, but not in finished:{state}")
    for task_id in dump.ttl_ms.keys() - stories.keys():
        view.report.counts["unexpected"] += 1
        view.report.found("I2", f"{task_id} is in Redis, but nobody asked for it")
