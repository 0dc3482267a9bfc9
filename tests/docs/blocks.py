"""Code blocks of a Markdown page, and what they promise.

`console` blocks hold commands behind `$ ` (continued behind `> `) and the output that follows each; `python` blocks
say what they print in comments `# → text`. `…` in expected text stands for anything; ids, times and the like differ
from run to run. A block behind `<!-- not run: reason -->` is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+) -->\n+)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


class Step(NamedTuple):
    """One command of a console block and the output shown for it."""

    command: str
    expected: str


def blocks(page: Path, language: str) -> list[Block]:
    """The page's blocks of one language that are to be run."""
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, match.start("text")), language, match["text"])
        for match in _BLOCK.finditer(text)
        if match["language"] == language and not match["reason"]
    ]


def steps(block: Block) -> list[Step]:
    found: list[Step] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], ""))
        elif line.startswith("> ") or line == ">":
            found[-1] = found[-1]._replace(command=f"{found[-1].command}\n{line[2:]}")
        else:
            found[-1] = found[-1]._replace(expected=f"{found[-1].expected}{line}\n")
    return found


def promised_output(block: Block) -> str:
    """What a python block says it prints."""
    return "".join(f"{line.partition('# → ')[2]}\n" for line in block.text.splitlines() if "# → " in line)


def matches(expected: str, printed: str) -> bool:
    """True if the output is the one shown, up to ids and what `…` stands for."""
    pattern = ".*?".join(re.escape(_UUID.sub("<id>", part)) for part in _trim(expected).split("…"))
    return re.fullmatch(pattern, _UUID.sub("<id>", _trim(printed)), re.DOTALL) is not None


def _trim(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
