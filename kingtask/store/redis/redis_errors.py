"""Redis's error replies: the kind of each, and whether the command may have taken effect.

| kind | reply of Redis | what the store does beside calling back |
|---|---|---|
| loading | LOADING: it reads its data | reconnects, which waits for it |
| readonly, masterdown, moved | READONLY, MASTERDOWN, MOVED, ASK: the primary is elsewhere | reconnects to it |
| no_function | the library is missing: promoted without it, or FUNCTION FLUSH | reconnects and loads it |
| auth | NOAUTH, WRONGPASS: the password was changed | reconnects and logs in |
| unblocked | UNBLOCKED: it was demoted during WAIT | reconnects |
| foreign | FOREIGN, by our own functions: not the expected database | reconnects until that is back |
| noreplicas, misconf, busy | NOREPLICAS; MISCONF: its disk; BUSY: a script runs | nothing, it may pass |
| clusterdown, tryagain, execabort | CLUSTERDOWN, TRYAGAIN, EXECABORT | nothing, it may pass |
| full | OOM: maxmemory | nothing, it drains |
| permission, error | NOPERM (within a function as well), anything else | nothing, a person must act |

Further kinds are `away` (not sent: no connection), `lost` (sent without an answer: the connection broke or a timeout)
and `damaged` (an answer that cannot be decoded).
"""

from __future__ import annotations

from kingtask.errors import StoreError

_KINDS = {
    "LOADING": "loading",
    "READONLY": "readonly",
    "MASTERDOWN": "masterdown",
    "MOVED": "moved",
    "ASK": "moved",
    "NOSCRIPT": "no_function",
    "NOAUTH": "auth",
    "WRONGPASS": "auth",
    "UNBLOCKED": "unblocked",
    "FOREIGN": "foreign",
    "NOREPLICAS": "noreplicas",
    "MISCONF": "misconf",
    "BUSY": "busy",
    "UNKILLABLE": "busy",
    "CLUSTERDOWN": "clusterdown",
    "TRYAGAIN": "tryagain",
    "EXECABORT": "execabort",
    "OOM": "full",
    "NOPERM": "permission",
}

KINDS = frozenset(_KINDS.values()) | {"error"}

RECONNECT_ON = frozenset("loading readonly masterdown moved no_function auth unblocked foreign".split())

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
