"""Redis's error replies: the kind of each, and whether the command may have taken effect.

Beside the kinds below there are `error` (any other reply: a person must act), `away` (not sent: no connection), `lost`
(sent without an answer: the connection broke, or a timeout) and `damaged` (an answer that cannot be decoded).
"""

from __future__ import annotations

from kingtask.errors import StoreError

_RECONNECT = {
    "LOADING": "loading",  # Redis reads its data; the new connection waits for it
    "READONLY": "readonly",  # this one and the next three: the primary is elsewhere
    "MASTERDOWN": "masterdown",
    "MOVED": "moved",
    "ASK": "moved",
    "NOSCRIPT": "no_function",  # a promoted replica without the library, or FUNCTION FLUSH; a broker's connect loads it
    "NOAUTH": "auth",  # the password was changed; a connect reads it again
    "WRONGPASS": "auth",
    "UNBLOCKED": "unblocked",  # the server was demoted during WAIT
    "FOREIGN": "foreign",  # by our own functions: not the expected database
}
_KINDS = _RECONNECT | {
    "NOREPLICAS": "noreplicas",  # this one and the next six pass by themselves
    "MISCONF": "misconf",  # the disk of the server
    "BUSY": "busy",  # a script runs
    "UNKILLABLE": "busy",
    "CLUSTERDOWN": "clusterdown",
    "TRYAGAIN": "tryagain",
    "EXECABORT": "execabort",
    "OOM": "full",  # maxmemory; workers drain it
    "NOPERM": "permission",  # within a function as well; a person must act
}
"""The kind by the first word of the reply."""

RECONNECT_ON = frozenset(_RECONNECT.values())

_MAYBE_DONE = frozenset({"error", "unblocked"})


def store_error(reply: Exception) -> StoreError:
    """Convert an error reply to a StoreError.

    A refused command has not begun. But an error that names a place in a function was raised while the function ran,
    perhaps after its first write, and an unknown error may mean anything.
    """
    text = str(reply)
    kind = _KINDS.get(text.partition(" ")[0], "error")
    if text.startswith("ERR Function not found"):
        kind = "no_function"
    if not_permitted_within(text):
        kind = "permission"
    begun = " script: " in text and kind != "foreign"  # our functions raise FOREIGN before they write
    return StoreError(kind, text, stored="unknown" if begun or kind in _MAYBE_DONE else "no")


def not_permitted_within(text: str) -> bool:
    """True for the NOPERM of a command within a function: it begins with ERR, and Redis 7.0 words it differently."""
    return "ACL failure in script" in text or "The user executing the script can't" in text
