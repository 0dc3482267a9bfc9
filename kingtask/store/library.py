"""The function library: its text, and names that carry a hash of the content.

The sources in `lua/` are joined in the order of their names. Function names are global on a server, so two releases can
run side by side only under different names. Brokers load the library, workers wait for it; both compare the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from kingtask import failpoint

SCHEMA = 1
"""Version of what the keys hold; `meta` records it, and a newer one is refused."""


@dataclass(frozen=True)
class Library:
    """A text with `@HASH@` where names are made."""

    template: str

    @cached_property
    def hash(self) -> str:
        return sha256(self.template.encode()).hexdigest()[:12]

    @property
    def text(self) -> str:
        return self.template.replace("@HASH@", self.hash)

    @property
    def name(self) -> str:
        return f"kingtask_{self.hash}"

    def function(self, name: str) -> str:
        return f"kingtask_{name}_{self.hash}"


@cache
def shipped() -> Library:
    if failpoint.ACTIVE and (path := failpoint.variant("library")):
        return Library(Path(path).read_text("utf-8"))
    return Library("\n".join(source.read_text("utf-8") for source in sources()))


def sources() -> list[Traversable]:
    """The files of the shipped library, in the order in which they are joined."""
    found = (path for path in files("kingtask.store").joinpath("lua").iterdir() if path.name.endswith(".lua"))
    return sorted(found, key=lambda path: path.name)
