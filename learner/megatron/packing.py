"""Which samples go together: over data-parallel ranks, in micro-batches of one rank, in one call of attention.

Guarantees: pure and deterministic, so that every rank that sees the same lengths finds the same division; nothing is left
out and nothing is taken twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise


def share_out(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices for each rank, with about equal sums of lengths: the longest goes to whoever has least (Graham 1969)."""
    loads = [(0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(index)
        heapq.heappush(loads, (load + lengths[index], rank))
    return [sorted(share) for share in shares]


def within_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices for each micro-batch, longest first, so that neighbours are alike; a sample above the budget goes alone."""
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not groups or lengths[index] > room:
            groups.append([])
            room = budget
        groups[-1].append(index)
        room -= lengths[index]
    return groups


def alike(lengths: Sequence[int], least: float = 0.8) -> list[slice]:
    """Cut into runs whose lengths lie between `least` times their first one and their first one."""
    starts: list[int] = []
    for index, length in enumerate(lengths):
        if not starts or not least * lengths[starts[-1]] <= length <= lengths[starts[-1]]:
            starts.append(index)
    return [slice(start, end) for start, end in pairwise([*starts, len(lengths)])]
