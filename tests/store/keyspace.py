"""A namespace as it lies in Redis, and what must hold of it between any two calls.

`check` knows every kind of key, why none grows without end, and the conservation of tasks: each living one is in
exactly one of schedule, ready and running, each index names only what is there, and the counters equal reality.
`BOUNDS` says for each kind of key what ends it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from kingtask.policy import Policy
from kingtask.states import TERMINAL
from kingtask.store import codec
from kingtask.store.keys import Keys
from tests.store.key_patterns import KEY_PATTERNS

LIVING = {"scheduled", "ready", "running"}
FINISHED_CAP = 10_000
PEERS_CAP = 2_000
ATTEMPTS_CAP = 72
META_FIELDS = set(b"schema cluster sequence ticked returned live kept max_kept".split())
COUNT_FIELDS = {
    *(b"submitted started retried lost scheduled running touched began before owner".split()),
    *(state.encode() for state in TERMINAL),
}
TASK_FIELDS = {
    *("p s t c w o due place attempt token worker claimed".split()),
    *("failures lost graced cancel watched finished reason out err out_size err_size dropped origin g k".split()),
}
_ATTEMPT = re.compile(r"attempt:\d+")

_DUMP = """
local keys, out = redis.call('KEYS', ARGV[1] .. '*'), {}
for i, key in ipairs(keys) do
  local kind = redis.call('TYPE', key).ok
  local value = {}
  if kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  out[i] = {key, kind, redis.call('PTTL', key), value}
end
return out
"""


@dataclass(frozen=True, slots=True)
class Entry:
    kind: str
    ttl_ms: int
    value: dict[bytes, bytes]
    """Field or member to value or score, as sent."""


Dump = dict[str, Entry]
"""By key, without the namespace's prefix."""


def dump(client: redis.Redis, keys: Keys) -> Dump:
    """Everything in the namespace, seen at one instant."""
    found: Any = client.eval(_DUMP, 0, keys.prefix)
    return {
        key.decode().removeprefix(keys.prefix): Entry(
            kind.decode(), ttl, dict(zip(value[::2], value[1::2], strict=True))
        )
        for key, kind, ttl, value in found
    }


def remove(client: redis.Redis, keys: Keys) -> None:
    """Remove what a test has left in its own namespace."""
    names = list(client.scan_iter(match=f"{keys.prefix}*", count=1000))
    if names:
        client.delete(*names)
    client.delete(f"clock:{keys.meta}")


def task_in(view: Dump, task_id: str) -> dict[str, Any]:
    """Everything that names the task: its hash, whether it has a TTL, its place in each index."""
    member = task_id.encode()
    found: dict[str, Any] = {}
    for key, entry in view.items():
        if key == f"task:{task_id}":
            found[key] = (entry.ttl_ms >= 0, entry.value)
        elif member in entry.value:
            found[key] = entry.value[member]
    return found


def check(view: Dump, policy: Policy = Policy()) -> None:  # noqa: B008  (frozen)
    """Assert everything that must hold."""
    for key, entry in view.items():
        kinds = [kind for kind, pattern in KEY_PATTERNS.items() if pattern.fullmatch(key)]
        assert len(kinds) == 1, f"{key}: a key of {len(kinds)} kinds"
        BOUNDS[kinds[0]].check(key, entry)
    _check_tasks(view)
    _check_counts(view, policy)
    _check_outputs(view, policy)
    for kind in ("workers", "brokers"):
        assert _members(view, kind).keys() == _members(view, f"{kind}:seen").keys()
    assert len(_members(view, "queues")) <= policy.max_queues


# ── every key has a TTL or a bound ──────────────────────────────────────────────────────────────────────────────────


def _no_ttl(key: str, entry: Entry) -> None:
    assert entry.ttl_ms == -1, f"{key}: a TTL would lose tasks"


def _task(key: str, entry: Entry) -> None:
    fields = {field.decode() for field in entry.value}
    attempts = {field for field in fields if _ATTEMPT.fullmatch(field)}
    assert fields - attempts <= TASK_FIELDS, f"{key}: unknown fields {fields - attempts - TASK_FIELDS}"
    assert len(attempts) <= ATTEMPTS_CAP
    state = entry.value[b"t"].decode()
    if state in LIVING:
        assert entry.ttl_ms == -1, f"{key}: a living task would vanish"
    else:
        assert state in TERMINAL
        assert entry.ttl_ms >= 0, f"{key}: an ended task is kept for ever"
        assert not {"cancel", "graced", "watched", "o"} & fields
        assert {"finished", "reason"} <= fields
    assert state == "running" or "cancel" not in fields, f"{key}: asked to cancel, but {state}"


def _with_ttl(key: str, entry: Entry) -> None:
    assert entry.ttl_ms >= 0, f"{key}: no TTL"


def _finished(key: str, entry: Entry) -> None:
    _no_ttl(key, entry)
    assert len(entry.value) <= FINISHED_CAP


def _counts(key: str, entry: Entry) -> None:
    _no_ttl(key, entry)
    assert set(entry.value) <= COUNT_FIELDS, f"{key}: unknown fields {set(entry.value) - COUNT_FIELDS}"


def _heartbeats(key: str, entry: Entry) -> None:
    _no_ttl(key, entry)
    assert len(entry.value) <= PEERS_CAP, f"{key}: names {len(entry.value)} peers"
    if key.endswith(":seen"):
        return
    assert all(value[:13].isdigit() for value in entry.value.values())


def _meta(key: str, entry: Entry) -> None:
    _no_ttl(key, entry)
    assert set(entry.value) <= META_FIELDS, f"{key}: unknown fields {set(entry.value) - META_FIELDS}"


@dataclass(frozen=True, slots=True)
class Bound:
    by: str
    """What keeps it from growing without end."""
    check: Callable[[str, Entry], None]


BOUNDS = {
    "task": Bound("max_tasks while it lives, then a TTL", _task),
    "schedule": Bound("names living tasks only: max_tasks", _no_ttl),
    "ready": Bound("names living tasks only: max_queue_length", _no_ttl),
    "running": Bound("names living tasks only: max_tasks", _no_ttl),
    "expiry": Bound("names living tasks only: max_tasks", _no_ttl),
    "owned": Bound("names living tasks only: max_outstanding", _no_ttl),
    "named": Bound("names known queues only: max_queues of permissions", _no_ttl),
    "held": Bound("TTL; names running tasks only", _with_ttl),
    "finished": Bound("capped", _finished),
    "outputs": Bound("max_result_bytes; an entry leaves when the record's TTL has passed", _no_ttl),
    "kept": Bound("as outputs; names owners with max_kept_bytes of whom something is kept", _no_ttl),
    "queues": Bound("max_queues", _no_ttl),
    "counts": Bound("one for each queue: max_queues", _counts),
    "workers": Bound("capped; who is silent for a minute is forgotten", _heartbeats),
    "brokers": Bound("capped; who is silent for a minute is forgotten", _heartbeats),
    "meta": Bound("its fields", _meta),
}


# ── conservation ────────────────────────────────────────────────────────────────────────────────────────────────────


def _members(view: Dump, key: str) -> dict[str, bytes]:
    entry = view.get(key)
    return {} if entry is None else {member.decode(): value for member, value in entry.value.items()}


def _queue(fields: dict[bytes, bytes]) -> str:
    return codec.unpack_plan(fields[b"p"]).queue or "default"


def _check_tasks(view: Dump) -> None:
    """Compare every index with what the tasks themselves say."""
    tasks = {key.removeprefix("task:"): entry.value for key, entry in view.items() if key.startswith("task:")}
    _check_living(view, tasks)
    for state in TERMINAL:
        ended = {task_id for task_id, fields in tasks.items() if fields[b"t"].decode() == state}
        listed = _members(view, f"finished:{state}")
        assert len(listed) >= FINISHED_CAP or ended <= listed.keys(), f"finished:{state} lacks {ended - listed.keys()}"
        # A record that has had its time leaves an entry behind, until the cap or housekeeping removes it; meanwhile
        # its id may have been used again.
        for task_id in listed.keys() & tasks.keys() - ended:
            older = int(listed[task_id]) <= int(tasks[task_id][b"c"])
            assert older, f"finished:{state} lists {task_id}, which is not {state}"


def _check_living(view: Dump, tasks: dict[str, dict[bytes, bytes]]) -> None:
    expected: dict[str, dict[str, int | bytes | None]] = {}
    for task_id, fields in tasks.items():
        state = fields[b"t"].decode()
        if state in TERMINAL:
            continue
        expires_ms = codec.unpack_plan(fields[b"p"]).expires_ms
        if b"o" in fields:
            expected.setdefault(f"owned:{fields[b'o'].decode()}", {})[task_id] = int(fields[b"c"])
        if expires_ms and state != "running":
            expected.setdefault("expiry", {})[task_id] = expires_ms
        if state == "scheduled":
            expected.setdefault("schedule", {})[task_id] = None
        elif state == "ready":
            expected.setdefault(f"ready:{_queue(fields)}", {})[task_id] = None
        else:
            expected.setdefault("running", {})[task_id] = None
            held = f"held:{fields[b'worker'].decode()}"
            nth = _members(view, held).get(task_id, b"").partition(b":")[2].partition(b":")[0]
            expected.setdefault(held, {})[task_id] = b":".join((fields[b"attempt"], nth, fields[b"token"]))

    named = ("ready:", "held:", "owned:")
    actual = {key for key in view if key.startswith(named) or key in ("schedule", "running", "expiry")}
    for key in actual | set(expected):
        found, wanted = _members(view, key), expected.get(key, {})
        assert set(found) == set(wanted), f"{key}: names {sorted(found)}, the tasks say {sorted(wanted)}"
        for task_id, value in wanted.items():
            same = float(found[task_id]) == value if isinstance(value, int) else value in (None, found[task_id])
            assert same, f"{key}: {task_id} is {found[task_id]!r}, not {value!r}"


def _check_counts(view: Dump, policy: Policy) -> None:
    real: Counter[tuple[str, str]] = Counter()
    for key, entry in view.items():
        if key.startswith("task:"):
            real[_queue(entry.value), entry.value[b"t"].decode()] += 1
    living = sum(n for (_, state), n in real.items() if state in LIVING)
    assert living <= policy.max_tasks
    live = int(_members(view, "meta").get("live", 0))
    assert live == living, f"meta counts {live} living tasks, there are {living}"
    names = {key.removeprefix("counts:") for key in view if key.startswith("counts:")}
    assert {queue for queue, state in real if state in LIVING} <= names
    owners = [key.removeprefix("named:") for key in view if key.startswith("named:")]
    listed = {(owner, name) for owner in owners for name in _members(view, f"named:{owner}")}
    made = set()
    for queue in names:
        assert queue in _members(view, "queues"), f"counts:{queue} for a queue without a name"
        counted = _members(view, f"counts:{queue}")
        for state in ("scheduled", "running"):
            assert int(counted.get(state, 0)) == real[queue, state], f"counts:{queue} {state}: {counted.get(state)!r}"
        if "owner" in counted:
            made.add((counted["owner"].decode(), queue))
    assert made == listed, f"{made} made names, {listed} are counted"


def _check_outputs(view: Dump, policy: Policy) -> None:
    """What an ended task keeps is counted once, with its size; what is counted and not there has lost its record."""
    meta, ended = _members(view, "meta"), _members(view, "outputs:ended")
    assert ended.keys() == _members(view, "outputs:until").keys()
    sizes = {member: int(re.split("[:+ ]", member)[1]) for member in ended}
    total = int(meta.get("kept", 0))
    assert total == sum(sizes.values()), f"meta counts {total} bytes of outputs, the index {sum(sizes.values())}"
    assert "max_kept" not in meta or total <= policy.max_result_bytes
    owners: dict[str, dict[str, bytes]] = {}
    for member, order in ended.items():
        if owner := member.partition(" ")[2]:
            owners.setdefault(owner, {})[member] = order
    assert owners == {key[len("kept:") :]: _members(view, key) for key in view if key.startswith("kept:")}
    sums = {owner: sum(sizes[member] for member in members) for owner, members in owners.items()}
    assert {owner: int(kept) for owner, kept in _members(view, "kept").items()} == sums
    for key, entry in view.items():
        if not key.startswith("task:"):
            continue
        fields, task_id = entry.value, key.removeprefix("task:")
        size = len(fields.get(b"out", b"")) + len(fields.get(b"err", b""))
        assert not (size and b"dropped" in fields), f"{key}: dropped, and still there"
        if fields[b"t"].decode() in LIVING:
            continue
        at, owner = int(fields[b"finished"]), fields.get(b"k", b"").decode().lstrip("0123456789")
        given = int(fields.get(b"g", 0))
        assert given == (len(fields[b"s"]) if len(fields[b"s"]) >= GIVEN_BYTES else 0), f"{key}: not what it was given"
        vanishing = int(meta.get("ticked", 0)) >= at + MIN_KEEP_MS  # its TTL is real time
        for kind, nth, kept in ((":", 0, size), ("+", 1, given)):
            score = (2 * (fields[b"t"] == b"failed") + nth) * 2**42 + at
            listed = ended.get(f"{task_id}{at}{kind}{kept}{owner}") == str(score).encode()
            assert not kept or listed or vanishing, f"{key}: {kept} bytes ({kind}) that nothing counts"


MIN_KEEP_MS = 1000
GIVEN_BYTES = 1024
