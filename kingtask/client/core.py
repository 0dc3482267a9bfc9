"""The client's core matches replies with calls, and decides what to send again, when, and to which broker. Pure.

Rules:
- The bytes of a call never change. Its `rid` correlates, and its task ids are chosen before the first try. So a retry
  is safe, and a reply to any try answers the call.
- A connection is one socket. When it breaks, the unanswered calls are sent again on the next one, at the next address.
- A call whose reply is overdue is sent again to the same broker, so that the late reply still counts. A broker that
  sends nothing at all is left for the next address.
- After a retryable refusal (`busy`, `unavailable`, `not_confirmed`) the call pauses and is sent again; at the next
  address, if the broker has served no other call meanwhile.
- All retries end at the one deadline of the call.

The shell owns the sockets and the clock. It reports events (`opened`, `up`, `broken`, `sent`, `received`, `tick`; `now`
is monotonic seconds) and then carries out the wishes of the core: close the socket if `closed`, open one to `endpoint`
if `wants_connection`, send what `next_to_send` gives, and come back with `tick` at `next_at`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf

from kingtask import protocol
from kingtask.client.call import Call, CallStage, Reply, asked_rest_s, no_answer
from kingtask.clock import Backoff
from kingtask.errors import InvalidRequest, KingtaskError, PermissionDenied, RequestRefused

PATIENCE = Backoff(1.0, 8.0)
"""The time for a reply, or a handshake, until the next try; doubled after each round of all addresses."""

RECONNECT = Backoff(0.05, 2.0)
"""The pause between two connections, doubled after each round of all addresses."""

REST = Backoff(0.05, 2.0)
"""The pause after a retryable refusal, doubled with each; the broker may ask for more."""

DENIALS = 3
"""Failed handshakes in a row that prove wrong keys. Fewer may come from a broker that stops."""

HEALTHY_S = 5.0
"""A refusal this long after its request begins a new series: the broker worked on the request in between."""


class Core:
    """The calls of one connection at a time, to one of `endpoints`; `random` gives 0 ≤ x < 1 and spreads retries."""

    def __init__(self, endpoints: Sequence[str], random: Callable[[], float], *, first: int = 0) -> None:
        self._endpoints = tuple(endpoints)
        self._random = random
        self.index = first % len(self._endpoints)
        """Index of the address in use."""
        self._calls: dict[int, Call] = {}
        self._queue: deque[Call] = deque()
        self._timers: list[tuple[float, int]] = []
        self._last_rid = 0
        self._open_at: float | None = 0.0
        """When the next connection is due; None while there is one."""
        self._up_by = inf
        """When to give up a connection that is not established yet."""
        self._heard_at = -inf
        self._served_at = -inf
        """The last success of a call other than a ping, which needs no Redis."""
        self._failures = 0
        """Connections without a reply in a row."""
        self._denials = 0
        """Handshakes in a row that failed because of the keys."""
        self._complaint: str | None = None
        """The last message that answered no call; NoAnswer quotes it."""

    # ── state for the shell ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def endpoint(self) -> str:
        return self._endpoints[self.index]

    @property
    def closed(self) -> bool:
        """True if there must be no connection now."""
        return self._open_at is not None

    @property
    def pending(self) -> int:
        """Number of calls that are not done."""
        return len(self._calls)

    def wants_connection(self, now: float) -> bool:
        return self._open_at is not None and self._open_at <= now and bool(self._calls)

    def next_to_send(self) -> Call | None:
        queue = self._queue
        while queue:
            if queue[0].stage is CallStage.QUEUED:
                return queue[0]
            queue.popleft()
        return None

    def next_at(self) -> float:
        """Return the latest time of the next `tick` or connection; inf without calls."""
        if not self._calls:
            return inf
        timers = self._timers
        while timers:
            at, rid = timers[0]
            call = self._calls.get(rid)
            if call is not None and call.wake_at == at:
                break
            heappop(timers)
        at = timers[0][0] if timers else inf
        return min(at, self._up_by if self._open_at is None else self._open_at)

    # ── events from the shell ────────────────────────────────────────────────────────────────────────────────────────

    def start(self, call: Call, now: float) -> bool:
        """Add a new call; return False if it is done at once, because it cannot be encoded."""
        self._last_rid = call.rid = self._last_rid + 1
        try:
            call.message = protocol.encode_request(call.rid, call.op, call.fields)
        except InvalidRequest as error:
            self._finish(call, error=error)
            return False
        call.hard = now + call.timeout_s
        call.deadline = min(call.hard, now + call.delay_s + call.silence_s)
        self._calls[call.rid] = call
        if call.delay_s:
            self._rest(call, now + call.delay_s)
        else:
            self._enqueue(call)
        return True

    def abandon(self, call: Call) -> None:
        """Drop a call for which nobody waits any more."""
        if call.stage is not CallStage.DONE:
            self._finish(call)

    def end(self, error: KingtaskError) -> list[Call]:
        """Give up all calls with this error; return them."""
        calls = list(self._calls.values())
        for call in calls:
            self._finish(call, error=error)
        return calls

    def opened(self, now: float) -> None:
        """Note that a socket to `endpoint` was opened; it is not connected yet."""
        self._open_at = None
        self._up_by = now + self._patience(self._failures)

    def up(self) -> None:
        """Note that the connection is established: the peer speaks ZeroMQ."""
        self._up_by = inf
        self._denials = 0

    def denied(self, now: float, why: str, *, certain: bool) -> list[Call]:
        """As `broken`, because of the keys. Once all brokers surely refuse the key, fail and return all calls."""
        self.broken(now, why=why)
        self._denials += 1
        if not certain or self._failures < len(self._endpoints):
            return []
        calls = list(self._calls.values())
        for call in calls:
            self._finish(call, error=self._no_access(call))
        return calls

    def broken(self, now: float, *, why: str | None = None) -> None:
        """The connection failed or ended. Calls without an answer wait for the next connection."""
        if self._open_at is not None:
            return
        self._complaint = why or self._complaint
        self._up_by = inf
        self._failures += 1
        self.index = (self.index + 1) % len(self._endpoints)
        rest = RECONNECT.after((self._failures - 1) // len(self._endpoints))
        self._open_at = now + rest * (0.5 + 0.5 * self._random())
        sent = sorted(
            (call for call in self._calls.values() if call.stage is CallStage.SENT), key=lambda call: -call.rid
        )
        for call in sent:
            call.maybe_stored = call.writes
            call.stage = CallStage.QUEUED
            call.deadline = min(call.deadline, now + call.silence_s)
            self._queue.appendleft(call)
            self._arm(call, call.deadline)

    def sent(self, now: float) -> None:
        """The call that `next_to_send` returned was sent."""
        call = self._queue.popleft()
        call.stage = CallStage.SENT
        call.sent_at = now
        call.tries += 1
        if not call.overdue:
            call.deadline = min(call.hard, now + call.answer_s + call.silence_s)
        self._arm(call, min(call.deadline, now + call.answer_s + self._patience(call.overdue)))

    def received(self, frame: bytes, now: float) -> Call | None:
        """Process a message; return the call that is now done, if any. Ignore everything but replies."""
        try:
            reply = protocol.decode_reply(frame)
        except InvalidRequest as error:
            self._complaint = str(error)
            return None
        self.up()
        self._heard_at = now
        self._failures = 0
        rid = reply.get("rid")
        call = self._calls.get(rid) if type(rid) is int else None
        if reply["ok"] is True:
            if call is not None:
                if call.op != "ping":
                    self._served_at = now
                self._finish(call, reply)
            return call
        fields = reply.get("error")
        refusal = protocol.error_from(fields if isinstance(fields, dict) else {})
        if call is None:
            if rid is None:
                self._complaint = str(refusal)
            return None
        self._refused(call, refusal, now)
        return call if call.stage is CallStage.DONE else None

    def tick(self, now: float) -> list[Call]:
        """Run the timers that are due; return the calls whose deadline has passed."""
        failed = []
        if self._up_by <= now:
            self.broken(now)
        timers = self._timers
        while timers and timers[0][0] <= now:
            at, rid = heappop(timers)
            call = self._calls.get(rid)
            if call is None or call.wake_at != at:
                continue
            if call.deadline <= now:
                denied = self._denials >= DENIALS
                error = self._no_access(call) if denied else no_answer(call, self._endpoints, self._complaint)
                self._finish(call, error=error)
                failed.append(call)
            elif call.stage is CallStage.RESTING:
                if self._refuses(call):
                    self.broken(now)
                self._enqueue(call)
            elif call.stage is CallStage.SENT:
                self._overdue(call, now)
            else:
                self._arm(call, call.deadline)
        return failed

    # ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _overdue(self, call: Call, now: float) -> None:
        """Retry a call whose reply is overdue; at another broker, if this one has sent nothing since."""
        call.overdue += 1
        call.maybe_stored = call.writes
        silent = self._heard_at < call.sent_at
        if silent and (len(self._endpoints) > 1 or call.overdue > 1):
            self.broken(now)
        else:
            self._enqueue(call)

    def _refused(self, call: Call, error: RequestRefused, now: float) -> None:
        if error.stored == "unknown":
            call.maybe_stored = True
        elif call.maybe_stored:  # the refusal covers its own try only, not the earlier ones
            error.stored = "unknown"
        if not error.retryable:
            self._finish(call, error=error)
            return
        if call.stage is not CallStage.SENT:
            return  # the refusal of an earlier try; the next try is due already
        if call.trouble_at is None or now - call.sent_at > HEALTHY_S:
            call.trouble_at, call.refusals = now, 0
        rest = max(REST.after(call.refusals), asked_rest_s(error))
        again_at = now + rest * (1 + 0.25 * self._random())
        if again_at >= min(call.hard, call.trouble_at + call.silence_s):
            self._finish(call, error=error)
            return
        call.refusals += 1
        call.refused_by = self.index
        call.deadline = min(call.hard, again_at + call.silence_s)
        self._rest(call, again_at)

    def _no_access(self, call: Call) -> PermissionDenied:
        return PermissionDenied(self._complaint or "", stored="unknown" if call.maybe_stored else "no")

    def _refuses(self, call: Call) -> bool:
        """Return True if the broker in use refused this call and has served no other since: another may do better."""
        return len(self._endpoints) > 1 and call.refused_by == self.index and self._served_at < call.sent_at

    def _rest(self, call: Call, until: float) -> None:
        call.stage = CallStage.RESTING
        self._arm(call, min(until, call.deadline))

    def _enqueue(self, call: Call) -> None:
        call.stage = CallStage.QUEUED
        self._queue.append(call)
        self._arm(call, call.deadline)

    def _arm(self, call: Call, at: float) -> None:
        call.wake_at = at
        if at < inf:
            heappush(self._timers, (at, call.rid))

    def _finish(self, call: Call, reply: Reply | None = None, *, error: KingtaskError | None = None) -> None:
        call.stage = CallStage.DONE
        call.reply = reply
        if error is not None:
            error.id = call.about
            call.error = error
        self._calls.pop(call.rid, None)
        if not self._calls:
            self._timers.clear()

    def _patience(self, tries: int) -> float:
        rounds = tries // len(self._endpoints)
        spread = 1 + 0.25 * self._random() if rounds else 1.0
        return PATIENCE.after(rounds) * spread
