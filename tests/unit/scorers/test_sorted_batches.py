"""Batches by token budget."""

from hypothesis import given
from hypothesis import strategies as st

from scorers.teachers.torch.batching import sorted_batches


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_every_sequence_is_in_one_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(sorted_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_sorting_leaves_little_padding() -> None:
    lengths = [10, 50] * 20
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in sorted_batches(lengths, 200))
    assert padded <= sum(lengths) * 1.05
