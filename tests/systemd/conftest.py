from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd import image, source
from tests.systemd.container import Container
from tests.systemd.image import Unable

PAGE = source.CHECKOUT / "deploy" / "README.md"


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Booted, with nothing of ours installed."""
    try:
        image.check()
        root = image.image()
        (python,) = (path.name.removeprefix("python") for path in (root / "usr/bin").glob("python3.[0-9]*[0-9]"))
        shared = tmp_path_factory.mktemp("source")
        source.gather(shared, python)
        booting = Container(root, shared)
        booting.__enter__()
    except Unable as missing:
        if os.environ.get("KINGTASK_REQUIRE_SYSTEMD") == "1":
            raise
        pytest.skip(str(missing))
    with_languages(shared)
    try:
        yield booting
    finally:
        booting.__exit__(None, None, None)


@pytest.fixture(scope="session")
def host(container: Container) -> Container:
    """Installed as deploy/README.md says."""
    for block in install_blocks():
        container.run(block)
    return container


def install_blocks() -> list[str]:
    return _blocks("Install")


def uninstall_blocks() -> list[str]:
    return _blocks("Uninstall")


def _blocks(heading: str) -> list[str]:
    """The sh blocks below a heading of the page."""
    _, _, rest = PAGE.read_text("utf-8").partition(f"\n## {heading}\n")
    section, _, _ = rest.partition("\n## ")
    found = re.findall(r"^ *```sh\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    assert found, f"{PAGE} has no blocks below {heading}"
    return [textwrap.dedent(text) for text in found]


GO = """package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	a, _ := strconv.Atoi(os.Args[1])
	b, _ := strconv.Atoi(os.Args[2])
	fmt.Println("sum", a+b)
}
"""


def with_languages(shared: Path) -> None:
    """What is compiled outside."""
    (shared / "programs").mkdir()
    if source.go_program(shared / "programs" / "sum", GO):
        (shared / "programs" / "sum.go").unlink()
