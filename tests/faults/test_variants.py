"""What is broken on purpose can still be broken so: the library that ships is what it is made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from kingtask.store.library import shipped
from tests.faults import variants


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_variant_differs_from_what_ships(name: str, tmp_path: Path) -> None:
    assert variants.write(name, tmp_path).read_text() != shipped().template
