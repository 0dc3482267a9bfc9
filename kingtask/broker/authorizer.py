"""Decides what each client may do, before anything is stored. Pure: its clock is a parameter.

A client's name is that of its key file; without CURVE every client is ANONYMOUS, and its tasks have no owner. Each
refusal names the rule in permissions.yaml that it comes from, and writes a line to the audit log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

from kingtask import protocol
from kingtask.clock import duration_ms, monotonic_s
from kingtask.config.permissions_file import PermissionsFile, Rule, compiled
from kingtask.config.sandbox_settings import first_unlisted
from kingtask.curve import ANONYMOUS
from kingtask.errors import Busy, PermissionDenied, RequestRefused
from kingtask.event import Event
from kingtask.result import Result
from kingtask.store.codec import unpack_spec
from kingtask.store.functions import Quota
from kingtask.task import TaskSpec

log = logging.getLogger("kingtask.audit")

UNCHANGED_PER_S, UNCHANGED_BURST = 1.0, 20
"""Audit lines of one client for requests that changed nothing."""
_NO_RULES = PermissionsFile(clients={}, default=Rule())


class Rate:
    """A token bucket: `per_s` on average, and a burst of as many, at least `burst`. Times are monotonic."""

    def __init__(self, per_s: float, burst: float = 1.0) -> None:
        self.per_s = per_s
        self._most = max(burst, per_s)
        self._left = self._most
        self._at_s = 0.0

    def take(self, now_s: float) -> float:
        """Take one token. Return 0, or the seconds until there is one."""
        self._left = min(self._most, self._left + max(0.0, now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self.per_s


class AuditTrail:
    """The audit lines of one client: every request that may have changed something, the others up to a rate."""

    def __init__(self, client: str, clock: Callable[[], float]) -> None:
        self.client = client
        self._clock = clock
        self._rate = Rate(UNCHANGED_PER_S, UNCHANGED_BURST)
        self._omitted = 0

    def answered(self, request: protocol.Request, answer: dict[str, Any] | RequestRefused) -> None:
        """Log the request and its outcome."""
        if isinstance(answer, RequestRefused):
            outcome, changed = str(answer), answer.stored != "no"
        else:
            outcome = answer.get("outcome", "done")
            changed = outcome != "exists"
        self.write(logging.INFO, request.op.name, changed, **_subject(request), outcome=outcome)

    def write(self, level: int, name: str, changed: bool, **fields: Any) -> None:
        if not changed and self._rate.take(self._clock()):
            self._omitted += 1
            return
        if self._omitted:
            fields["omitted"], self._omitted = self._omitted, 0
        log.log(level, Event(f"audit={name}", client=self.client, **fields))


class ClientPolicy:
    """The rules of one client. The checks raise PermissionDenied, or Busy (`rate_limited`)."""

    def __init__(self, audit: AuditTrail, rule: Rule, source: str, rate: Rate | None) -> None:
        """`source` is the rule's path in the file, for messages."""
        self._audit = audit
        self._rule = rule
        self._source = source
        self._rate = rate
        self._queues = None if rule.queues is None else compiled(rule.queues)
        self._tasks = None if rule.tasks is None else compiled(rule.tasks)
        self.owner = None if audit.client == ANONYMOUS else rule.owner or audit.client
        self.of = self.owner if (rule.of or ("own" if rule.bounded else "all")) == "own" else None
        """The only owner on whose tasks the client may act; None: on all."""
        bounds = rule.max_outstanding or 0, rule.max_kept_bytes is not None, duration_ms(rule.max_keep_result or 0)
        limited = any(bounds) or rule.max_queues is not None
        self.quota = Quota(self.owner or audit.client, *bounds, rule.max_queues) if limited else None

    def depends_on_task(self, request: protocol.ById) -> bool:
        """True if `check_task` has to see the stored task first."""
        rule = self._rule
        limits = rule.env, rule.max_priority, rule.max_time_limit, self._rate
        return rule.bounded or (isinstance(request, protocol.Requeue) and limits != (None,) * 4)

    def check_request(self, request: protocol.Request) -> None:
        """Check the op, and the queue if the request names one."""
        op = request.op.name
        if self._rule.ops is not None and op not in self._rule.ops:
            self._deny(op, _subject(request), "op", f"this client may not {op}", "ops")
        queue = getattr(request, "queue", None)
        if queue is not None and not self.has_queue(queue):
            self._deny(op, {"queue": queue}, "queue", f"not one of this client's: {queue}", "queues")

    def check_submit(self, spec: TaskSpec, place: str, now_s: float) -> Quota | None:
        """Check one task of a submit, at `place` of the request. Return the bounds that only the store can keep."""
        self._check_names("submit", spec.id, spec.name, spec.queue, place)
        self._check_limits("submit", spec, place)
        self._check_rate(place, now_s)
        return self.quota

    def check_task(self, op: str, task: Result, packed_spec: bytes, now_s: float) -> None:
        """Check the stored task on which a request acts. A requeue is held to the limits of a submit."""
        self._check_names(op, task.id, task.name, task.queue, "id")
        if op == "requeue" and not task.request_dropped:  # otherwise the store refuses it
            stored = unpack_spec(packed_spec)
            limit_s = stored.time_limit_ms / 1000
            spec = TaskSpec(id=task.id, name=task.name, priority=task.priority, time_limit_s=limit_s, env=stored.env)
            self._check_limits(op, spec, "id")
            self._check_rate("id", now_s)

    def has_queue(self, queue: str) -> bool:
        return self._queues is None or self._queues(queue)

    def has_task(self, name: str, queue: str) -> bool:
        return self.has_queue(queue) and (self._tasks is None or self._tasks(name))

    def filtered(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to `list` or `stats` without the tasks and queues that this client may not see."""
        if "tasks" in fields:
            tasks = [task for task in fields["tasks"] if self.has_task(task["name"], task["queue"])]
            return {**fields, "tasks": tasks}
        if "queues" in fields and self._rule.bounded:
            queues = [queue for queue in fields["queues"] if self.has_queue(queue["name"])]
            workers = [
                _without_host({**worker, "queues": served})
                for worker in fields["workers"]
                if (served := list(filter(self.has_queue, worker.get("queues", ()))))
            ]
            return {"queues": queues, "workers": workers, "brokers": list(map(_without_host, fields["brokers"]))}
        return fields

    def _check_names(self, op: str, task_id: str | None, name: str, queue: str, place: str) -> None:
        if not self.has_queue(queue):
            self._deny(op, {"id": task_id}, f"{place}.queue", f"not one of this client's queues: {queue}", "queues")
        if not self.has_task(name, queue):
            self._deny(op, {"id": task_id}, f"{place}.name", f"not one of this client's tasks: {name}", "tasks")

    def _check_limits(self, op: str, spec: TaskSpec, place: str) -> None:
        rule, subject = self._rule, {"id": spec.id}
        if rule.max_priority is not None and spec.priority > rule.max_priority:
            why = f"expected at most {rule.max_priority}, got {spec.priority}"
            self._deny(op, subject, f"{place}.priority", why, "max_priority")
        if rule.max_time_limit is not None and not 0 < (spec.time_limit_s or 0) <= rule.max_time_limit:
            why = f"expected one of at most {rule.max_time_limit:g} s"
            self._deny(op, subject, f"{place}.time_limit_s", why, "max_time_limit")
        if rule.max_keep_result is not None and (spec.keep_result_s or 0) > rule.max_keep_result:
            why = f"expected at most {rule.max_keep_result:g} s, got {spec.keep_result_s:g}"
            self._deny(op, subject, f"{place}.keep_result_s", why, "max_keep_result")
        if rule.env is not None and (name := first_unlisted(spec.env, rule.env)) is not None:
            why = "not one of the variables that this client may set"
            self._deny(op, subject, f"{place}.env[{name[:64]!a}]", why, "env")

    def _check_rate(self, place: str, now_s: float) -> None:
        if self._rate is not None and (wait_s := self._rate.take(now_s)):
            raise Busy(
                f"{place}: this client may submit {self._rate.per_s:g} tasks a second"
                f" ({self._source}.submits_per_second); come back later",
                code="rate_limited",
                retry_after_s=round(wait_s, 3),
            )

    def _deny(self, op: str, subject: dict[str, str | None], field: str, why: str, key: str) -> NoReturn:
        field = "id" if field.startswith("id.") else field  # a request by id has no fields of the task
        rule = f"{self._source}.{key}"
        self._audit.write(logging.WARNING, "denied", False, op=op, **subject, rule=rule)
        raise PermissionDenied(f"{field}: {why} ({rule} of the broker's permissions)", field=field)


class Authorizer:
    """Holds a ClientPolicy for each client, made at its first request. A reload keeps rates that it does not change."""

    def __init__(self, permissions: PermissionsFile | None, clock: Callable[[], float] = monotonic_s) -> None:
        self._permissions = permissions
        self._clock = clock
        self._trails: dict[str, AuditTrail] = {}
        """At most as many as there were keys; a reload begins no new burst."""
        self._policies: dict[str, ClientPolicy] = {}
        """At most as many as there are keys."""
        self._rates: dict[str, Rate] = {}

    def reload(self, permissions: PermissionsFile | None) -> None:
        self._permissions = permissions
        self._policies.clear()

    def trail_of(self, client: str) -> AuditTrail:
        trail = self._trails.get(client)
        if trail is None:
            trail = self._trails[client] = AuditTrail(client, self._clock)
        return trail

    def policy_of(self, client: str) -> ClientPolicy | None:
        """Return the rules of this client, or None for an anonymous one if the broker has no permissions."""
        if self._permissions is None and client == ANONYMOUS:
            return None
        if client in self._policies:
            return self._policies[client]
        rule, source = (_NO_RULES if self._permissions is None else self._permissions).rule_of(client)
        rate = self._rates.pop(client, None)
        if rule.submits_per_second is None:
            rate = None
        elif rate is None or rate.per_s != rule.submits_per_second:
            rate = Rate(rule.submits_per_second)
        if rate is not None:
            self._rates[client] = rate
        policy = self._policies[client] = ClientPolicy(self.trail_of(client), rule, source, rate)
        return policy


def kept_bounds(permissions: PermissionsFile | None) -> dict[str, int]:
    """Return the bounds of owners for Policy: the least `max_kept_bytes` of the entries of each."""
    if permissions is None:
        return {}
    default = permissions.default or Rule()
    rules = [(rule.owner or name, rule) for name, rule in permissions.clients.items() if name != ANONYMOUS]
    rules += [(default.owner or "", default), (ANONYMOUS, permissions.rule_of(ANONYMOUS)[0])]
    bounds: dict[str, int] = {}
    for owner, rule in rules:
        bounds[owner] = min(filter(None, (bounds.get(owner), rule.max_kept_bytes)), default=0)
    return bounds if any(bounds.values()) else {}


def _without_host(peer: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a worker or broker without those of its host."""
    return {name: value for name, value in peer.items() if name not in ("host", "pid", "bin_path")}


def _subject(request: protocol.Request) -> dict[str, str | None]:
    """Return the ids and the queue that the request names."""
    found = {name: getattr(request, name, None) for name in ("id", "new_id", "queue")}
    return {name: value for name, value in found.items() if value is not None} or {"id": None}
