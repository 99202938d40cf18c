"""Which tokens of packed sequences a context-parallel rank holds.

Guarantees: pure; the ranks hold every token once, and under a causal mask as many pairs of query and key as each other: a sequence is
filled up to 2 * size chunks of one length, of which rank r holds chunks r and 2 * size - 1 - r, in this order, as Transformer Engine's
attention expects. One rank alone holds everything, and fills nothing up.
"""

# ruff: noqa: N815 - array names carry shape letters
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Holding:
    """Of N tokens in sequences of these lengths the n that are here, filled-up places included."""

    whole_B: _Array  # length of each sequence when it is filled up
    held_B: _Array  # how much of it is here
    position_n: _Array  # of each place here in its sequence
    source_n: _Array  # which of the N tokens is there; N where the sequence is filled up
    home_N: _Array  # where each token is; -1: on another rank


def positions(length: int, rank: int, size: int) -> _Array:
    """The positions of a sequence that `rank` of `size` holds; those from `length` on fill it up."""
    chunk = -(-length // (2 * size))
    places = np.arange(chunk)
    return np.concatenate([places + rank * chunk, places + (2 * size - 1 - rank) * chunk])


def holding(lengths: Sequence[int], rank: int, size: int) -> Holding:
    """Of sequences packed one after the other."""
    length_B = np.asarray(lengths)
    if size == 1:
        token_N = np.arange(int(length_B.sum()))
        return Holding(length_B, length_B, token_N - np.repeat(np.cumsum(length_B) - length_B, length_B), token_N, token_N)
    held = [positions(length, rank, size) for length in lengths]
    held_B = np.asarray([part.size for part in held])
    position_n = np.concatenate(held)
    total = int(length_B.sum())
    source_n = position_n + np.repeat(np.cumsum(length_B) - length_B, held_B)
    source_n[position_n >= np.repeat(length_B, held_B)] = total
    home_N = np.full(total + 1, -1)
    home_N[source_n] = np.arange(source_n.size)
    return Holding(held_B * size, held_B, position_n, source_n, home_N[:-1])


def order_of_all(lengths: Sequence[int], size: int) -> _Array:
    """Sequence after sequence, filled up, where each place lies when the ranks' parts follow one another."""
    parts = [holding(lengths, rank, size) for rank in range(size)]
    whole_B, held_B = parts[0].whole_B, parts[0].held_B
    order = np.empty(int(whole_B.sum()), np.int64)
    starts_n = np.repeat(np.cumsum(whole_B) - whole_B, held_B)
    for rank, part in enumerate(parts):
        order[starts_n + part.position_n] = rank * starts_n.size + np.arange(starts_n.size)
    return order
