"""What is done with a message before anything is asked of Redis, and what may come of it."""

from __future__ import annotations

from kingtask import protocol, wire
from kingtask.errors import InvalidRequest, RequestRefused
from kingtask.task import TaskSpec

NOW_S = 1_800_000_000.0
MAX_TEXT = 2_000


def decide(message: bytes) -> str:
    """Read it as a broker does, and as a client does; returns what came of it: an op, or the code of the refusal.

    Raises AssertionError, or whatever else, if that is neither a value nor a refusal that can be told, or if the two
    ways of reading a submit come to different ends.
    """
    try:
        told = _as_broker(message)
    except InvalidRequest as error:
        assert protocol.read_submit(message) is None, "what is read in one pass is read the long way, too"
        told = _look(error)
    try:
        assert isinstance(protocol.decode_reply(message), dict)
    except RequestRefused as error:
        _look(error)
    return told


def _as_broker(message: bytes) -> str:
    envelope = wire.decode(message)
    request = protocol.parse(envelope)
    quick = protocol.read_submit(message)
    if not isinstance(request, protocol.Submit):
        assert quick is None, "only a submit is read in one pass"
        return str(envelope["op"])
    outcomes = _outcomes(request)
    if quick is not None:
        assert quick.rid == request.rid
        assert _outcomes(quick) == outcomes
    return next((outcome for outcome in outcomes if isinstance(outcome, str)), "submit")


def _outcomes(request: protocol.Submit) -> list[TaskSpec | str]:
    found: list[TaskSpec | str] = []
    for i, task in enumerate(request.tasks if request.tasks is not None else [request.task]):
        try:
            found.append(protocol.parse_task(task, NOW_S, f"tasks[{i}]"))
        except InvalidRequest as error:
            found.append(_look(error))
    return found


def _look(error: RequestRefused) -> str:
    assert error.message.isprintable()
    assert 0 < len(error.message) < MAX_TEXT
    assert protocol.decode_reply(protocol.refusal(1, error))["error"]["code"] == error.code
    return error.code
