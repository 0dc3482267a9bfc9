"""What is taken to a host: the checkout's deploy/ and etc/, its wheel and, as there is no network, all that needs."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "deploy" / "README.md"
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
    _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(place / "dist"), str(copy))
    (wheel,) = (place / "dist").glob("kingtask-*.whl")
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(OLDEST_GLIBC, NEWEST_GLIBC)]
    _pip(
        *("download", "--quiet", "--only-binary=:all:", "--dest", str(place / "wheels"), "--implementation=cp"),
        *("--python-version", python, "--abi", f"cp{python.replace('.', '')}", "--abi=abi3", "--abi=none"),
        *(word for name in (*platforms, f"manylinux2014_{machine}") for word in ("--platform", name)),
        # pip asks its own Python whether redis needs the latter, which it does before 3.11.3.
        *(str(wheel), "async-timeout"),
    )


def _pip(*arguments: str) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([sys.executable, "-m", "pip", *arguments], env=environment, check=True, stdin=subprocess.DEVNULL)


def go_program(place: Path, text: str) -> bool:
    """Compile it into one static file; False if there is no Go here."""
    go = shutil.which("go")
    if go is None:
        return False
    source = place.with_suffix(".go")
    source.write_text(text)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    subprocess.run([go, "build", "-o", str(place), str(source)], env=environment, check=True)
    return True


def page_blocks(heading: str) -> list[str]:
    """What deploy/README.md has root do below a heading: its blocks of sh."""
    _, _, rest = PAGE.read_text("utf-8").partition(f"\n## {heading}\n")
    section, _, _ = rest.partition("\n## ")
    found = re.findall(r"^ *```sh\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    assert found, f"{PAGE} has no blocks below {heading}"
    return [textwrap.dedent(text) for text in found]
