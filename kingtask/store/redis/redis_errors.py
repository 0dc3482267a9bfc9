"""Redis's error replies: which kind each is, and whether what was asked may have been done all the same.

| kind | what Redis says | what the store does beside telling the caller |
|---|---|---|
| loading | LOADING: it reads its data | connects anew, which waits for that |
| readonly, masterdown, moved | READONLY, MASTERDOWN, MOVED, ASK: the primary is elsewhere | connects anew: finds it |
| no_function | the library is not there: promoted without it, or FUNCTION FLUSH | connects anew: loads it |
| auth | NOAUTH, WRONGPASS: the password was changed | connects anew: logs in |
| unblocked | UNBLOCKED: it was demoted during WAIT | connects anew |
| foreign | FOREIGN, by our own functions: not the database that we had | connects anew, until that is back |
| noreplicas, misconf, busy | NOREPLICAS; MISCONF: its disk; BUSY: a script runs | nothing, it may pass |
| clusterdown, tryagain, execabort | CLUSTERDOWN, TRYAGAIN, EXECABORT | nothing, it may pass |
| full | OOM: maxmemory | nothing, it drains |
| permission, error | NOPERM (within a function as well), anything else | nothing, a person has to look |

Beside them there are `away` (not sent: no connection), `lost` (sent, and no answer: the connection broke, or the time
was up) and `damaged` (an answer that cannot be read).
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
    """Redis's error reply as a StoreError.

    A command that is refused was not begun. But an error that names a place in a function came out of one that was
    running, perhaps behind its first write, and an error that we do not know may be anything.
    """
    text = str(reply)
    kind = _KINDS.get(text.partition(" ")[0], "error")
    if text.startswith("ERR Function not found"):
        kind = "no_function"
    if not_permitted_within(text):
        kind = "permission"
    begun = " script: " in text and kind != "foreign"  # which our functions say before they write
    return StoreError(kind, text, stored="unknown" if begun or kind in _MAYBE_DONE else "no")


def not_permitted_within(text: str) -> bool:
    """True for the NOPERM of a command that a function calls: it begins with ERR, and in 7.0 reads otherwise."""
    return "ACL failure in script" in text or "The user executing the script can't" in text
