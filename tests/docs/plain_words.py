"""Words that pages, docstrings and comments do not use, since a stranger cannot understand or search them."""

from __future__ import annotations

import re
from typing import NamedTuple


class Word(NamedTuple):
    pattern: re.Pattern[str]
    instead: str


def _word(pattern: str, instead: str) -> Word:
    return Word(re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), instead)


WORDS = (
    _word(r"told|tells|telling", "log, notify, report, answer, show"),
    _word(r"whoever|whomever|whosoever|whichever", "a noun: everyone, the client, the reader, each"),
    _word(r"whose it is|as whom|who is there", "a noun: the owner, the user"),
    _word(r"anew", "again, reconnect, reload"),
    _word(r"mend(?:s|ed|ing)?", "correct, repair, fix"),
    _word(r"hinder(?:s|ed|ing)?", "block, prevent"),
    _word(r"in vain", "failed, without success"),
    _word(r"(?:be|is|are|was|were) (?:to be )?had", "is available, gives"),
    _word(r"shall", "must"),
    _word(r"look(?:s|ed|ing)? again", "poll, rescan, check again"),
    _word(r"look(?:s|ed|ing)? (?:at|after|whether)", "read, check, examine, poll"),
    _word(r"once more", "again, retry, requeue"),
    _word(r"hoard(?:s|ed|ing|ers?)?", "unfinished message"),
    _word(r"desks?", "dispatcher"),
    _word(r"the edge", "the ROUTER socket"),
    _word(r"the gate", "the authenticator"),
    _word(r"the bell|appetite|hungry", "wakeup, hint; idle"),
    _word(r"signs? of life", "lease, renewal"),
    _word(r"fell silent|falls? silent|fallen silent", "did not renew its lease, does not answer"),
    _word(r"sa(?:y|ys|id) so", "report, log, announce"),
    _word(r"hand(?:s|ed|ing)? back", "release, return"),
    _word(r"an OK means", "the acknowledgement means"),
    _word(r"but for", "except"),
    _word(r"lest|whence|thence|hence|thereof|therein|wherein|whereby|albeit|notwithstanding|nought|ere", "plain words"),
)
"""`instead` is advice for the message of the test."""

RELATIVE_START = re.compile(r"\A(?:What|Who|Whose|Of|That|Those)\b")
"""A docstring begins with a verb or with a noun, not with a relative clause or a genitive."""

EXCEPTIONS: dict[tuple[str, str], str] = {
    (".github/CONTRIBUTING.md", '"whoever connects"'): "the page quotes the words to avoid",
}
"""(file, words as they stand there) → the reason: a quotation, or a name in code without backquotes."""

UNTIL_REWRITTEN = {
    "README.md": "a later release rewrites it; its head, down to the first heading, is checked",
    "kingtask/PROTOCOL.md": "a later release rewrites it; its head, down to the first heading, is checked",
}
