"""Divisions of a batch lose nothing, repeat nothing, and keep their bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learner.megatron.packing import alike, share_out, within_budget

LENGTHS = st.lists(st.integers(1, 500), max_size=80)


@given(LENGTHS, st.integers(1, 8))
def test_every_sample_goes_to_exactly_one_rank(lengths: list[int], ranks: int) -> None:
    shares = share_out(lengths, ranks)
    assert len(shares) == ranks
    assert sorted(index for share in shares for index in share) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 8))
def test_no_rank_has_more_than_a_fair_share_and_one_sample(lengths: list[int], ranks: int) -> None:
    loads = [sum(lengths[index] for index in share) for share in share_out(lengths, ranks)]
    assert max(loads) <= sum(lengths) / ranks + max(lengths, default=0)


@given(LENGTHS, st.integers(1, 600))
def test_micro_batches_keep_the_budget_and_every_sample(lengths: list[int], budget: int) -> None:
    groups = within_budget(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or sum(lengths[index] for index in group) <= budget for group in groups)


@given(LENGTHS)
def test_attention_blocks_follow_one_another_and_are_alike(lengths: list[int]) -> None:
    blocks = [lengths[members] for members in alike(lengths, 0.5)]
    assert [length for block in blocks for length in block] == lengths
    assert all(0.5 * block[0] <= length <= block[0] for block in blocks for length in block)
