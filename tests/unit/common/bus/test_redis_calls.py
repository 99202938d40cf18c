"""Batches are cut by count and by bytes, and lose nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.bus.redis_calls import MOST_BYTES, MOST_ENTRIES, pieces
from common.bus.redis_client import shown


@given(st.lists(st.integers(0, 3 * MOST_BYTES), max_size=3 * MOST_ENTRIES))
def test_pieces_are_small_and_together_the_whole(sizes: list[int]) -> None:
    cut = list(pieces(sizes, lambda size: size))
    assert [size for piece in cut for size in piece] == sizes
    assert all(0 < len(piece) <= MOST_ENTRIES for piece in cut)
    assert all(sum(piece) <= MOST_BYTES or len(piece) == 1 for piece in cut)


def test_an_address_is_shown_without_its_password() -> None:
    assert shown("redis://user:pass@word@host:6379/3") == "redis://host:6379/3"
    assert shown("unix://:secret@/run/redis.sock") == "unix:///run/redis.sock"
    assert shown("redis://:pa/ss#?@host:6379/3?password=word") == "redis://host:6379/3"
    assert shown("user:pass@host:6379") == "host:6379"
