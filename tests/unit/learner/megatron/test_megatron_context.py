"""Which tokens of a sequence a context-parallel rank holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.megatron.context import holding, order_of_all, positions

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=8)
SIZES = st.integers(1, 5)


def test_a_rank_holds_one_chunk_from_each_end() -> None:
    assert positions(8, 0, 2).tolist() == [0, 1, 6, 7]
    assert positions(7, 1, 2).tolist() == [2, 3, 4, 5]


@given(LENGTHS, SIZES)
def test_every_token_is_on_one_rank_and_all_ranks_hold_as_many_places(lengths: list[int], size: int) -> None:
    parts = [holding(lengths, rank, size) for rank in range(size)]
    assert len({part.source_n.size for part in parts}) == 1
    held = np.concatenate([part.source_n[part.source_n < sum(lengths)] for part in parts])
    assert sorted(held.tolist()) == list(range(sum(lengths)))
    for part in parts:
        here = part.home_N >= 0
        assert part.source_n[part.home_N[here]].tolist() == np.flatnonzero(here).tolist()


@given(LENGTHS, st.integers(2, 5))
def test_ranks_have_as_many_pairs_of_query_and_key(lengths: list[int], size: int) -> None:
    assert len({int((holding(lengths, rank, size).position_n + 1).sum()) for rank in range(size)}) == 1


@given(LENGTHS, SIZES)
def test_gathered_parts_are_found_in_the_order_of_the_sequences(lengths: list[int], size: int) -> None:
    parts = [holding(lengths, rank, size) for rank in range(size)]
    gathered = np.concatenate([part.position_n for part in parts])
    assert gathered[order_of_all(lengths, size)].tolist() == [place for whole in parts[0].whole_B for place in range(whole)]
