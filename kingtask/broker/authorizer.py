"""What each client may do, decided before anything is stored. No socket and no Redis; times are given.

A client is known by the name of its key file; without keys everyone is ANONYMOUS. Each refusal names the rule that it
comes from, and leaves a line in the log.
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from kingtask import protocol
from kingtask.config.permissions_file import PermissionsFile, Rule, compiled
from kingtask.errors import Busy, PermissionDenied
from kingtask.result import Result
from kingtask.store.functions import Quota
from kingtask.task import TaskSpec

log = logging.getLogger("kingtask.audit")

ANONYMOUS = "anonymous"
_NOTHING = Rule(ops=())


class Rate:
    """At most `per_s` a second on the average, and as many (at least one) at once."""

    def __init__(self, per_s: float, now_s: float) -> None:
        self.per_s = per_s
        self._most = max(1.0, per_s)
        self._left = self._most
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Take one; returns 0, or after how many seconds there will be one."""
        self._left = min(self._most, self._left + max(0.0, now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self.per_s


_About = dict[str, str | None]
"""What an audit line says, by name; the names are ours."""


class ClientPolicy:
    """Of one client. Its methods return nothing, or raise PermissionDenied or Busy (`rate_limited`)."""

    def __init__(self, client: str, rule: Rule, source: str, rate: Rate | None) -> None:
        self.client = client
        self._rule = rule
        self._source = source
        self._rate = rate
        self._queues = None if rule.queues is None else compiled(rule.queues)
        self._tasks = None if rule.tasks is None else compiled(rule.tasks)
        self.quota = None if rule.max_outstanding is None else Quota(client, rule.max_outstanding)

    def looks_at(self, request: protocol.Request) -> bool:
        """It depends on the task whether this client may do that with it."""
        if self._queues is not None or self._tasks is not None:
            return True
        return self._rate is not None and isinstance(request, protocol.Requeue)

    def request(self, request: protocol.Request) -> None:
        """As far as the request itself tells; before anything else is done with it."""
        op = str(type(request).__struct_config__.tag)
        if self._rule.ops is not None and op not in self._rule.ops:
            self._deny(op, _ids(request), "op", f"this client may not {op}", "ops")
        queue = getattr(request, "queue", None)
        if queue is not None and not self.has_queue(queue):
            self._deny(op, {"queue": queue}, "queue", f"not one of this client's: {queue}", "queues")

    def submit(self, spec: TaskSpec, place: str, now_s: float) -> Quota | None:
        """One task of a submit; `now_s` is monotonic. Returns what only the store can count."""
        rule = self._rule
        self._name("submit", spec.id, spec.name, spec.queue, place)
        if rule.max_priority is not None and spec.priority > rule.max_priority:
            told = f"expected at most {rule.max_priority}, got {spec.priority}"
            self._deny("submit", {"id": spec.id}, f"{place}.priority", told, "max_priority")
        if (
            rule.max_time_limit is not None
            and not (spec.time_limit_s or rule.max_time_limit + 1) <= rule.max_time_limit
        ):
            told = f"expected one of at most {rule.max_time_limit:g} s"
            self._deny("submit", {"id": spec.id}, f"{place}.time_limit_s", told, "max_time_limit")
        self._count(place, now_s)
        return self.quota

    def task(self, op: str, found: Result, now_s: float) -> None:
        """A task that is there, for what is done by its id."""
        self._name(op, found.id, found.name, found.queue, "id")
        if op == "requeue":
            self._count("id", now_s)

    def has_queue(self, queue: str) -> bool:
        return self._queues is None or self._queues.fullmatch(queue) is not None

    def has_task(self, name: str, queue: str) -> bool:
        return self.has_queue(queue) and (self._tasks is None or self._tasks.fullmatch(name) is not None)

    def filtered(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Of the reply to `list` or `stats`, what this client may see."""
        if "tasks" in fields:
            tasks = [one for one in fields["tasks"] if self.has_task(one["name"], one["queue"])]
            return {**fields, "tasks": tasks}
        if "queues" in fields:
            return {**fields, "queues": [one for one in fields["queues"] if self.has_queue(one["name"])]}
        return fields

    def _name(self, op: str, task_id: str | None, name: str, queue: str, place: str) -> None:
        if not self.has_queue(queue):
            where = place if place == "id" else f"{place}.queue"
            self._deny(op, {"id": task_id}, where, f"not one of this client's queues: {queue}", "queues")
        if not self.has_task(name, queue):
            where = place if place == "id" else f"{place}.name"
            self._deny(op, {"id": task_id}, where, f"not one of this client's tasks: {name}", "tasks")

    def _count(self, place: str, now_s: float) -> None:
        if self._rate is not None and (wait_s := self._rate.take(now_s)):
            raise Busy(
                f"{place}: this client may submit {self._rate.per_s:g} tasks a second"
                f" ({self._source}.submits_per_second); come back later",
                code="rate_limited",
                retry_after_s=round(wait_s, 3),
            )

    def _deny(self, op: str, about: _About, field: str, why: str, key: str) -> NoReturn:
        rule = f"{self._source}.{key}"
        _audit(logging.WARNING, "denied", {"client": self.client, "op": op, **about, "rule": rule})
        raise PermissionDenied(f"{field}: {why} ({rule} of the broker's permissions)", field=field)


class Authorizer:
    """A Permit for each client, made when it is first asked for. A reload that leaves a rate alone lets it go on."""

    def __init__(self) -> None:
        self.on = False
        """There are any; looked at for each request."""
        self._permissions: PermissionsFile | None = None
        self._permits: dict[str, ClientPolicy] = {}
        self._rates: dict[str, Rate] = {}

    def reload(self, permissions: PermissionsFile | None) -> None:
        self._permissions = permissions
        self.on = permissions is not None
        self._permits.clear()

    def of(self, client: str, now_s: float) -> ClientPolicy:
        """There are as many as there are keys. Not to be called unless `on`."""
        permit = self._permits.get(client)
        if permit is None:
            permit = self._permits[client] = self._make(client, now_s)
        return permit

    def _make(self, client: str, now_s: float) -> ClientPolicy:
        assert self._permissions is not None
        rule, source = self._permissions.clients.get(client), f"clients.{client}"
        if rule is None:
            rule, source = self._permissions.default or _NOTHING, "default"
        rate = self._rates.get(client)
        if rule.submits_per_second is None:
            self._rates.pop(client, None)
            rate = None
        elif rate is None or rate.per_s != rule.submits_per_second:
            rate = self._rates[client] = Rate(rule.submits_per_second, now_s)
        return ClientPolicy(client, rule, source, rate)


def _ids(request: protocol.Request) -> _About:
    found = {name: getattr(request, name, None) for name in ("id", "new_id", "queue")}
    return {name: value for name, value in found.items() if value is not None} or {"id": None}


def audited(client: str, request: protocol.Request, answer: dict[str, Any] | Exception) -> None:
    """A line for who changed what: cancel, requeue, pause and resume."""
    op = str(type(request).__struct_config__.tag)
    outcome = str(answer) if isinstance(answer, Exception) else answer.get("outcome", "done")
    _audit(logging.INFO, op, {"client": client, **_ids(request), "outcome": repr(outcome)})


def _audit(level: int, what: str, about: _About) -> None:
    shape = " ".join(["audit=%s", *(f"{name}=%s" for name in about)])
    log.log(level, shape, what, *about.values())


AUDITED = (protocol.Cancel, protocol.Requeue, protocol.Pause, protocol.Resume)
BY_ID = (protocol.Get, protocol.Wait, protocol.Cancel, protocol.Requeue)
