"""The languages: what each needs, how its client is built, how its driver is started."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
BUILT = HERE.parents[1] / "build" / "interop"
"""Kept from run to run, so that only what changed is fetched and compiled again."""
BUILD_TIMEOUT_S = 500.0


class Language(NamedTuple):
    name: str
    needs: tuple[str, ...]
    """Commands that must be there; what else `build` needs it gets from the language's own registry."""
    build: tuple[tuple[str, ...], ...]
    driver: tuple[str, ...]
    example: tuple[str, ...]
    probe: tuple[str, ...] = ()
    """Succeeds if the libraries are there that come with the machine."""
    curve: bool = True
    """Its library can do it; if not, README.md says why."""


LANGUAGES = {
    language.name: language
    for language in (
        Language(
            "go",
            ("go",),
            (("go", "vet", "./..."), ("go", "build", "-o", "built/", "./...")),
            ("built/driver",),
            ("built/example",),
            curve=False,
        ),
        Language(
            "node",
            ("node", "npm"),
            (("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"),),
            ("node", "driver.js"),
            ("node", "example.js"),
        ),
        Language(
            "c",
            ("make", "cc", "pkg-config"),
            (("make", "-s"),),
            ("./driver",),
            ("./example",),
            ("pkg-config", "--exists", "libzmq", "msgpack"),
        ),
        Language(
            "java",
            ("javac", "java", "mvn"),
            (("mvn", "-q", "-B", "compile"),),
            ("java", "-cp", "target/classes:target/dependency/*", "kingtask.Driver"),
            ("java", "-cp", "target/classes:target/dependency/*", "kingtask.Example"),
        ),
        Language(
            "rust",
            ("cargo",),
            (("cargo", "build", "--locked", "--all-targets"),),
            ("target/debug/driver",),
            ("target/debug/examples/example",),
            curve=False,
        ),
        Language(
            "ruby",
            ("ruby",),
            (),
            ("ruby", "driver.rb"),
            ("ruby", "example.rb"),
            ("ruby", "-rffi-rzmq", "-rmsgpack", "-e", ""),
        ),
        Language(
            "perl",
            ("perl",),
            (),
            ("perl", "driver.pl"),
            ("perl", "example.pl", "example", "12", "45"),
            ("perl", "-MZMQ::FFI", "-MData::MessagePack", "-e", ""),
        ),
    )
}


def missing(language: Language) -> str:
    """What this machine lacks for the language; empty if nothing."""
    commands = [command for command in language.needs if not shutil.which(command)]
    if commands:
        return f"{language.name}: no {', '.join(commands)}"
    if language.probe and subprocess.run(language.probe, capture_output=True, check=False).returncode:
        return f"{language.name}: {' '.join(language.probe)} fails"
    return ""


def require(why_not: str) -> None:
    """Skip where a toolchain is missing, fail where all are promised."""
    if why_not and os.environ.get("KINGTASK_REQUIRE_INTEROP"):
        pytest.fail(why_not)
    if why_not:
        pytest.skip(why_not)


def build(language: Language) -> Path:
    """Build the client; returns the directory to start its driver in."""
    place = BUILT / language.name
    shutil.copytree(HERE / language.name, place, dirs_exist_ok=True)
    for command in language.build:
        run(command, place)
    return place


def run(command: tuple[str, ...], place: Path) -> None:
    done = subprocess.run(
        command,
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
