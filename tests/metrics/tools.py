"""Programs of Debian's package `prometheus`: tests that need them are skipped where they are not installed."""

from __future__ import annotations

import os
import shutil

import pytest

REQUIRED = "KINGTASK_REQUIRE_PROMETHEUS"


def program(name: str) -> str:
    """Its path. Without it the test is skipped, or fails where it must not be."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{name} is not installed, and {REQUIRED}=1 says that it must be")
        pytest.skip(f"{name} is not installed (Debian: prometheus, logrotate)")
    return path
