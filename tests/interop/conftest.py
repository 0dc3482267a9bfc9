"""The clients, built once a session, and a driver of each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.interop.driver import DriverProcess
from tests.interop.languages import LANGUAGES, Language, build, missing, require


@cache
def built(name: str) -> Path | str:
    """Once a session, with whatever must be fetched; why not, if it failed, so that it is not tried for each test."""
    try:
        return build(LANGUAGES[name])
    except AssertionError as error:
        return str(error)


@pytest.fixture(params=LANGUAGES)
def client(request: pytest.FixtureRequest) -> tuple[Language, Path]:
    """One language's, and the directory in which it is built."""
    language = LANGUAGES[request.param]
    require(missing(language))
    place = built(language.name)
    if isinstance(place, str):
        pytest.fail(place)
    return language, place


@pytest.fixture
def driver(client: tuple[Language, Path]) -> Iterator[DriverProcess]:
    language, place = client
    with DriverProcess(language.driver, place) as driver:
        yield driver
