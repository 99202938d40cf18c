"""Which sequences go through the model together: the budget holds for padded tokens, and sorting keeps the padding small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def sorted_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices into `lengths`, longest first, in batches of at most `budget` tokens with padding; a longer sequence goes alone."""
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        if not batch:
            longest = lengths[index]
        batch.append(index)
    if batch:
        yield batch
