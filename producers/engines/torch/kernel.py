"""One layer's attention in a decode step, compiled for the CPU: heads are normalised and turned to their position, keys and values go into
the cache, every row's query meets its own columns. One call instead of thirty, and no work on columns that a row has not.

A row's numbers depend on that row alone. A row without a request stands at column 0 and hears itself. The machine code is made at the
first call, in a second or two, and kept beside this file for the next start, where the directory can be written.

Letters: N rows, S slots, H heads, K key-value heads, A = H + 2K, D head width, C columns, P positions.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float32]
_MATHS = {"reassoc", "contract", "arcp", "nsz"}  # not-a-number and infinity stay what they are
_compiled = njit(fastmath=_MATHS, nogil=True, cache=os.access(Path(__file__).parent, os.W_OK))  # without a place numba refuses to cache


@_compiled  # type: ignore[untyped-decorator]  # numba has no types
def attend_rows(
    qkv_NAD: Floats,
    q_norm_D: Floats,
    k_norm_D: Floats,
    eps: np.float32,
    cos_PD: Floats,
    sin_PD: Floats,
    position_N: npt.NDArray[np.int64],
    keys_SKCD: Floats,
    values_SKCD: Floats,
    scale: np.float32,
    heard_NHD: Floats,
) -> None:
    """Overwrites `qkv`, fills `heard`. A norm without weights is none; `sin` carries the sign of the half-rotation; every position is below
    C, which nobody checks here."""
    rows, heads, width = heard_NHD.shape
    kv_heads = keys_SKCD.shape[1]
    group = heads // kv_heads
    raw_D, weight_C = np.empty(width, np.float32), np.empty(keys_SKCD.shape[2], np.float32)
    for row in range(rows):
        place = position_N[row]
        for head in range(heads + kv_heads):
            head_D = qkv_NAD[row, head]
            _normalise(head_D, q_norm_D if head < heads else k_norm_D, eps)
            _turn(head_D, cos_PD[place], sin_PD[place], raw_D)
        for kv in range(kv_heads):
            for d in range(width):
                keys_SKCD[row, kv, place, d] = qkv_NAD[row, heads + kv, d]
                values_SKCD[row, kv, place, d] = qkv_NAD[row, heads + kv_heads + kv, d]
        for head in range(heads):
            kv = head // group
            _hear(qkv_NAD[row, head], keys_SKCD[row, kv, : place + 1], values_SKCD[row, kv], scale, weight_C, heard_NHD[row, head])


@_compiled  # type: ignore[untyped-decorator]
def _normalise(head_D: Floats, norm_D: Floats, eps: np.float32) -> None:
    """Root-mean-square norm in place, where there is one."""
    if not len(norm_D):
        return
    square = np.float32(0)
    for d in range(len(head_D)):
        square += head_D[d] * head_D[d]
    inverse = np.float32(1) / np.sqrt(square / np.float32(len(head_D)) + eps)
    for d in range(len(head_D)):
        head_D[d] *= inverse * norm_D[d]


@_compiled  # type: ignore[untyped-decorator]
def _turn(head_D: Floats, cos_D: Floats, sin_D: Floats, raw_D: Floats) -> None:
    """Half-rotation in place; `raw` is scratch."""
    half = len(head_D) // 2
    raw_D[:] = head_D
    for d in range(half):
        head_D[d] = raw_D[d] * cos_D[d] + raw_D[d + half] * sin_D[d]
        head_D[d + half] = raw_D[d + half] * cos_D[d + half] + raw_D[d] * sin_D[d + half]


@_compiled  # type: ignore[untyped-decorator]
def _hear(query_D: Floats, key_WD: Floats, value_CD: Floats, scale: np.float32, weight_C: Floats, heard_D: Floats) -> None:
    """softmax(query · keyᵀ · scale) · value over the keys given; `weight` is scratch."""
    columns, width = key_WD.shape
    for column in range(columns):
        score = np.float32(0)
        for d in range(width):
            score += query_D[d] * key_WD[column, d]
        weight_C[column] = score * scale
    top = weight_C[:columns].max()
    total = np.float32(0)
    heard_D[:] = 0
    for column in range(columns):
        weight = math.exp(weight_C[column] - top)
        total += weight
        for d in range(width):
            heard_D[d] += weight * value_CD[column, d]
    for d in range(width):
        heard_D[d] /= total
