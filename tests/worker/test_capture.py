"""Captured output: exact while it fits, head and tail beyond, never more memory than the bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kingtask.result import cut_at
from kingtask.worker.exec.capture import Capture, shorten


def test_all_of_it_while_it_fits() -> None:
    capture = Capture(10)
    capture.feed(b"01234")
    capture.feed(b"56789")
    assert (capture.kept(), capture.size) == (b"0123456789", 10)


def test_head_and_tail_beyond_that() -> None:
    capture = Capture(10)
    for i in range(100):
        capture.feed(b"%02d" % i)
    assert (capture.kept(), capture.size) == (b"0001089899"[:5] + b"79899"[-5:], 200)
    assert capture.kept() == b"00010" + b"79899"


def test_nothing_is_kept_where_nothing_may_be() -> None:
    capture = Capture(0)
    capture.feed(b"x" * 1000)
    assert (capture.kept(), capture.size) == (b"", 1000)


def test_more_may_come_after_a_look() -> None:
    capture = Capture(4)
    capture.feed(b"abcdef")
    assert capture.kept() == b"abef"
    capture.feed(b"gh")
    assert (capture.kept(), capture.size) == (b"abgh", 8)


@given(limit=st.integers(0, 64), pieces=st.lists(st.binary(max_size=80), max_size=40))
def test_it_is_what_a_list_of_everything_would_give(limit: int, pieces: list[bytes]) -> None:
    capture = Capture(limit)
    most = 0
    for piece in pieces:
        capture.feed(piece)
        most = max(most, len(capture._head) + len(capture._tail))
    everything = b"".join(pieces)
    assert capture.size == len(everything)
    assert capture.kept() == shorten(everything, limit)
    assert len(capture.kept()) == min(limit, len(everything))
    assert most <= 1.5 * limit + 1


@given(data=st.binary(max_size=50), limit=st.integers(0, 60))
def test_shortening_keeps_both_ends(data: bytes, limit: int) -> None:
    kept = shorten(data, limit)
    assert len(kept) == min(len(data), limit)
    cut = cut_at(kept, len(data))
    if cut is None:
        assert kept == data
    else:
        assert kept == data[:cut] + data[len(data) - (limit - cut) :]


@given(data=st.binary(max_size=90), limit=st.integers(0, 60), less=st.integers(0, 60))
def test_what_is_shortened_twice_still_says_where_it_was_cut(data: bytes, limit: int, less: int) -> None:
    assert shorten(shorten(data, limit), min(limit, less)) == shorten(data, min(limit, less))
