"""The error for a call that no broker answered: who was asked, what was seen, what may be stored, what to do. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kingtask.client.call import WRITES, Call
from kingtask.errors import NoAnswer


def no_answer(call: Call, endpoints: Sequence[str], complaint: str | None) -> NoAnswer:
    """`complaint` is the last thing received that was no reply to any call, if anything was."""
    brokers = " or ".join(endpoints)
    after = "" if call.answer_s else f" within {round(call.timeout_s, 2):g} s"
    text = f"no answer to {call.op} from {brokers}{after}: "
    if not call.tries:
        text += "no connection; is kingtask-broker running there, is the address right, does a firewall let it through?"
        if any(endpoint.startswith("ipc:") for endpoint in endpoints):
            text += " Is this user in the group of the socket?"
        stored = call.op in WRITES and call.maybe_stored
    else:
        times = "once" if call.tries == 1 else f"{call.tries} times"
        text += f"it was sent {times}; is the broker overloaded or stopped (see its log)?"
        stored = call.op in WRITES
    if complaint:
        text += f" Last seen: {complaint}."
    if call.op in WRITES:
        text += _advice(call, stored)
    return NoAnswer(text, stored="unknown" if stored else "no")


def no_access(endpoint: str, *, keyed: bool, certain: bool) -> str:
    """Why a handshake failed. libzmq says for certain only that a key is not known; the rest is a closed connection."""
    if certain:
        return f"{endpoint} does not know this client's key: is its .key file among the broker's authorized_clients?"
    text = f"{endpoint} ends the connection in the handshake, as a broker does "
    if keyed:
        return text + "that has another key than the server key given here, or asks for none"
    return text + (
        "that asks for keys (CURVE): give this client its own and the broker's, by --curve-key and --server-key, or by"
        " KINGTASK_CURVE_KEY and KINGTASK_SERVER_KEY"
    )


def _advice(call: Call, stored: bool) -> str:
    if call.op != "submit":
        return " It may have taken effect; asking again is safe." if stored else " Nothing was changed."
    if not stored:
        return " Nothing was stored."
    what = f"the same id ({call.about})" if call.about else "the same ids"
    return f" It may be stored; submitting again with {what} is safe and makes no second task."
