"""What the fuzzer judges by holds for the vectors, and for all it has ever found."""

from __future__ import annotations

from kingtask import protocol
from kingtask.errors import REFUSALS
from tests.fuzz.decoding import decide
from tests.fuzz.seeds import findings, seeds


def test_each_vector_and_what_was_found_once_comes_to_a_known_end() -> None:
    inputs = [*seeds().values(), *findings()]
    told = {decide(message) for message in inputs}
    assert {"submit", "malformed", "invalid_request", "unknown_op", "unsupported_version"} <= told
    assert told <= {*protocol.OPS, *REFUSALS}
