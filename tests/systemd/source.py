"""What is taken to a host: the checkout's deploy/ and etc/, its wheel and, as there is no network, all that needs."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from kingtask import __version__

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "deploy" / "README.md"
NEXT = "1.1.0"
"""The release to which the page upgrades; it is this one, but for its number and a line of its function library."""
OLDEST_GLIBC, NEWEST_GLIBC = 17, 40
"""Of the wheels, 2.x: pip wants each named that the container's may be at least."""


def gather(place: Path, python: str) -> None:
    """Put it all into `place`. `python`: the version of the container's, such as 3.11."""
    place.chmod(0o755)  # not all commands are root's
    for name in ("deploy", "etc"):
        shutil.copytree(CHECKOUT / name, place / name)
    copy = place / "checkout"  # in which root may leave what building leaves
    shutil.copytree(CHECKOUT / "kingtask", copy / "kingtask", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy)
    wheel = _wheel(copy, place / "dist")
    source = copy / "kingtask" / "__init__.py"
    source.write_text(source.read_text("utf-8").replace(f'"{__version__}"', f'"{NEXT}"'), "utf-8")
    with (copy / "kingtask" / "store" / "lua" / "70_read.lua").open("a", encoding="utf-8") as lua:
        lua.write("-- the next release\n")
    _wheel(copy, place / "dist")
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(OLDEST_GLIBC, NEWEST_GLIBC)]
    _pip(
        *("download", "--quiet", "--only-binary=:all:", "--dest", str(place / "wheels"), "--implementation=cp"),
        *("--python-version", python, "--abi", f"cp{python.replace('.', '')}", "--abi=abi3", "--abi=none"),
        *(word for name in (*platforms, f"manylinux2014_{machine}") for word in ("--platform", name)),
        # pip asks its own Python whether redis needs the latter, which it does before 3.11.3.
        *(str(wheel), "async-timeout"),
    )


def _wheel(copy: Path, into: Path) -> Path:
    with tempfile.TemporaryDirectory() as place:
        _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", place, str(copy))
        (made,) = Path(place).iterdir()
        into.mkdir(exist_ok=True)
        return Path(shutil.copy(made, into))


def _pip(*arguments: str) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([sys.executable, "-m", "pip", *arguments], env=environment, check=True, stdin=subprocess.DEVNULL)


def compile_programs(place: Path) -> None:
    """Put the executable `sum` of Go, and the class Sum of Java into a directory, where there are compilers."""
    place.mkdir()
    for name, text in (("sum.go", GO), ("Sum.java", JAVA)):
        (place / name).write_text(text)
    if go := shutil.which("go"):
        static = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off"}
        subprocess.run([go, "build", "-o", "sum", "sum.go"], cwd=place, env=static, check=True)
    if javac := shutil.which("javac"):
        subprocess.run([javac, "--release", "11", "Sum.java"], cwd=place, check=True)


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

JAVA = """class Sum {
    public static void main(String[] args) {
        System.out.println("sum " + (Integer.parseInt(args[0]) + Integer.parseInt(args[1])));
    }
}
"""


def page_blocks(heading: str) -> list[str]:
    """What deploy/README.md has root do below a heading: its blocks of sh."""
    _, _, rest = PAGE.read_text("utf-8").partition(f"\n## {heading}\n")
    section, _, _ = rest.partition("\n## ")
    found = re.findall(r"^ *```sh\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    assert found, f"{PAGE} has no blocks below {heading}"
    return [textwrap.dedent(text) for text in found]
