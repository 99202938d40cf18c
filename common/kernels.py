"""Loops of attention on a CPU, compiled: what many small calls of an array library would do in one pass over the data.

Float32 arrays, or bfloat16 ones as the uint16 of their bits: loops compute in float32 either way and round once. A row's numbers depend on
that row alone; not-a-number and infinity stay what they are. The machine code is made at the first call, in a second or two, and kept
beside this file for the next start, where the directory can be written. Elements are indexed one by one: a view per row costs numba more
than the row's arithmetic.

Letters: N rows, T tokens, F width, S slots, B sequences, L length, H heads, K key-value heads, G = H / K, A = H + 2K, D head width,
C columns, P positions.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from common.bits import bits_of, float_of, number, rounded

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
_MATHS = {"reassoc", "contract", "arcp", "nsz"}
_compiled = njit(
    fastmath=_MATHS, nogil=True, error_model="numpy", cache=os.access(Path(__file__).parent, os.W_OK)
)  # without a place numba refuses to cache
_inlined = njit(inline="always")  # numba passes an array as ten numbers, which takes longer than a short row
_LANES = 16  # columns are computed in whole vectors: a remainder one by one would cost more than all of them
_NOTHING = np.float32(-3e38)


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
    """A decode step: keys and values go into the cache, every row's query meets its own columns. Fills `heard`, uses up `qkv`.

    A norm without weights is none; `sin` carries the sign of the half-rotation; a row without a request stands at column 0 and hears
    itself; every position is below C, which nobody checks here.
    """
    rows, heads, width = heard_NHD.shape
    kv_heads = keys_SKCD.shape[1]
    group = heads // kv_heads
    q_weight_D, k_weight_D = _or_ones(q_norm_D, width), _or_ones(k_norm_D, width)
    query_D = np.empty(width, np.float32)
    weight_C = np.empty(_whole_lanes(keys_SKCD.shape[2]), np.float32)
    for row in range(rows):
        place = position_N[row]
        for kv in range(kv_heads):
            _turn(qkv_NAD, row, heads + kv, k_norm_D, k_weight_D, eps, cos_PD, sin_PD, place, keys_SKCD, (row, kv, place))
            for d in range(width):
                values_SKCD[row, kv, place, d] = qkv_NAD[row, heads + kv_heads + kv, d]
        for head in range(heads):
            _turn(qkv_NAD, row, head, q_norm_D, q_weight_D, eps, cos_PD, sin_PD, place, query_D, ())
            _hear(query_D, keys_SKCD, values_SKCD, row, head // group, place + 1, scale, weight_C, heard_NHD, head)


@_compiled  # type: ignore[untyped-decorator]
def spread_heads(
    qkv_TAD: Numbers,
    q_norm_D: Floats,
    k_norm_D: Floats,
    eps: np.float32,
    cos_PD: Floats,
    sin_PD: Floats,
    queries_BxGLxD: Numbers,
    keys_BxLxD: Numbers,
    values_BxLxD: Numbers,
) -> None:
    """B·L tokens' heads, normalised and turned to their positions, as batches of matrices, one for each key-value head of a sequence:
    queries [B·K, G·L, D], keys and values [B·K, L, D]. A norm without weights is none; `sin` carries the sign of the half-rotation."""
    length, width = keys_BxLxD.shape[1:]
    group = queries_BxGLxD.shape[1] // length
    kv_heads = qkv_TAD.shape[1] // (group + 2)
    heads = group * kv_heads
    q_weight_D, k_weight_D = _or_ones(q_norm_D, width), _or_ones(k_norm_D, width)
    for token in range(len(qkv_TAD)):
        place, first = token % length, token // length * kv_heads
        for head in range(heads):
            at = first + head // group, head % group * length + place
            _turn(qkv_TAD, token, head, q_norm_D, q_weight_D, eps, cos_PD, sin_PD, place, queries_BxGLxD, at)
        for kv in range(kv_heads):
            batch = first + kv
            _turn(qkv_TAD, token, heads + kv, k_norm_D, k_weight_D, eps, cos_PD, sin_PD, place, keys_BxLxD, (batch, place))
            for d in range(width):
                values_BxLxD[batch, place, d] = qkv_TAD[token, heads + kv_heads + kv, d]


@_compiled  # type: ignore[untyped-decorator]
def softmax_causal(scores_NL: Numbers, scale: np.float32) -> None:
    """In place: row n hears columns 0 to n mod L; the others become 0."""
    rows, length = scores_NL.shape
    weight_C = np.empty(_whole_lanes(length), np.float32)
    for row in range(rows):
        columns = row % length + 1
        for column in range(columns):
            weight_C[column] = number(scores_NL[row, column]) * scale
        total = _exponentials(weight_C, columns)
        for column in range(columns):
            scores_NL[row, column] = rounded(weight_C[column] / total, scores_NL[row, column])
        for column in range(columns, length):
            scores_NL[row, column] = 0


@_compiled  # type: ignore[untyped-decorator]
def normalise_rows(x_TF: Numbers, weight_F: Floats, eps: np.float32, out_TF: Numbers) -> None:
    """Root-mean-square norm of every row."""
    tokens, width = x_TF.shape
    for token in range(tokens):
        square = np.float32(0)
        for f in range(width):
            value = number(x_TF[token, f])
            square += value * value
        inverse = np.float32(1) / np.sqrt(square / np.float32(width) + eps)
        for f in range(width):
            out_TF[token, f] = rounded(number(x_TF[token, f]) * inverse * weight_F[f], out_TF[token, f])


@_inlined  # type: ignore[untyped-decorator]
def _turn(
    all_TAD: Numbers,
    token: int,
    head: int,
    norm_D: Floats,
    weight_D: Floats,
    eps: np.float32,
    cos_PD: Floats,
    sin_PD: Floats,
    place: int,
    out_XD: Numbers,
    at_X: tuple[int, ...],
) -> None:
    """One head of one token: its norm, where there is one, then the half-rotation, to `out[at]`; `weight` is the norm's, or ones."""
    width = len(weight_D)
    half = width // 2
    inverse = np.float32(1)
    if len(norm_D):
        square = np.float32(0)
        for d in range(width):
            value = number(all_TAD[token, head, d])
            square += value * value
        inverse = np.float32(1) / np.sqrt(square / np.float32(width) + eps)
    for d in range(half):
        low = number(all_TAD[token, head, d]) * inverse * weight_D[d]
        high = number(all_TAD[token, head, d + half]) * inverse * weight_D[d + half]
        first, second = at_X + (d,), at_X + (d + half,)  # noqa: RUF005 - numba unpacks no tuple
        out_XD[first] = rounded(low * cos_PD[place, d] + high * sin_PD[place, d], out_XD[first])
        out_XD[second] = rounded(high * cos_PD[place, d + half] + low * sin_PD[place, d + half], out_XD[second])


@_inlined  # type: ignore[untyped-decorator]
def _or_ones(norm_D: Floats, width: int) -> Floats:
    return norm_D if len(norm_D) else np.ones(width, np.float32)


@_compiled  # type: ignore[untyped-decorator]
def _hear(
    query_D: Floats,
    keys_SKCD: Floats,
    values_SKCD: Floats,
    row: int,
    kv: int,
    columns: int,
    scale: np.float32,
    weight_C: Floats,
    heard_NHD: Floats,
    head: int,
) -> None:
    """softmax(query · keyᵀ · scale) · value over the first columns; `weight` is scratch."""
    _score(query_D, keys_SKCD, row, kv, columns, scale, weight_C)
    inverse = np.float32(1) / _exponentials(weight_C, columns)
    width, fours = len(query_D), columns // 4 * 4
    for d in range(width):
        heard_NHD[row, head, d] = 0
    for column in range(0, fours, 4):
        w0, w1, w2, w3 = weight_C[column], weight_C[column + 1], weight_C[column + 2], weight_C[column + 3]
        for d in range(width):
            heard_NHD[row, head, d] += (
                w0 * values_SKCD[row, kv, column, d]
                + w1 * values_SKCD[row, kv, column + 1, d]
                + w2 * values_SKCD[row, kv, column + 2, d]
                + w3 * values_SKCD[row, kv, column + 3, d]
            )
    for column in range(fours, columns):
        for d in range(width):
            heard_NHD[row, head, d] += weight_C[column] * values_SKCD[row, kv, column, d]
    for d in range(width):
        heard_NHD[row, head, d] *= inverse


@_compiled  # type: ignore[untyped-decorator]
def _score(query_D: Floats, keys_SKCD: Floats, row: int, kv: int, columns: int, scale: np.float32, score_C: Floats) -> None:
    """query · keyᵀ · scale; four columns at a time, so that their sums do not wait for one another."""
    width, fours = len(query_D), columns // 4 * 4
    for column in range(0, fours, 4):
        s0 = s1 = s2 = s3 = np.float32(0)
        for d in range(width):
            s0 += query_D[d] * keys_SKCD[row, kv, column, d]
            s1 += query_D[d] * keys_SKCD[row, kv, column + 1, d]
            s2 += query_D[d] * keys_SKCD[row, kv, column + 2, d]
            s3 += query_D[d] * keys_SKCD[row, kv, column + 3, d]
        score_C[column], score_C[column + 1], score_C[column + 2], score_C[column + 3] = s0 * scale, s1 * scale, s2 * scale, s3 * scale
    for column in range(fours, columns):
        score = np.float32(0)
        for d in range(width):
            score += query_D[d] * keys_SKCD[row, kv, column, d]
        score_C[column] = score * scale


@_compiled  # type: ignore[untyped-decorator]
def _exponentials(x_C: Floats, columns: int) -> np.float32:
    """e to the power of each of the first columns less their largest, in place; returns the sum. What is behind them, up to a whole vector,
    is overwritten."""
    behind = _whole_lanes(columns)
    for column in range(columns, behind):
        x_C[column] = _NOTHING
    top = x_C[0]
    for column in range(columns):
        top = max(top, x_C[column])
    total = np.float32(0)
    for column in range(behind):
        x_C[column] = _exponential(x_C[column] - top)
    for column in range(columns):
        total += x_C[column]
    return total


@_compiled  # type: ignore[untyped-decorator]
def _whole_lanes(columns: int) -> int:
    return (columns + _LANES - 1) // _LANES * _LANES


@_compiled  # type: ignore[untyped-decorator]
def _exponential(x: np.float32) -> np.float32:
    """e to the power of x, at most 0, to 1e-7 of it: a power of two times the minimax polynomial of Cephes' expf (Moshier 1989)."""
    twos = max(x * np.float32(1.4426950408889634), np.float32(-126))
    whole = np.floor(twos + np.float32(0.5))
    y = (twos - whole) * np.float32(0.6931471805599453)
    part = np.float32(1.9875691500e-4)
    part = part * y + np.float32(1.3981999507e-3)
    part = part * y + np.float32(8.3334519073e-3)
    part = part * y + np.float32(4.1665795894e-2)
    part = part * y + np.float32(1.6666665459e-1)
    part = part * y + np.float32(5.0000001201e-1)
    part = part * y * y + y + np.float32(1)
    power: np.float32 = float_of(bits_of(part) + (np.uint32(np.int32(whole)) << np.uint32(23)))
    return power
