"""A tensor as its difference from the version before, bit for bit.

Guarantees: `apply_deltas` gives exactly the bytes that were encoded, or raises WeightsError: each delta names the digest of what it is
applied to (one that was applied already is refused) and of what comes out, which is checked. Memory is bounded by the tensor, whatever a
delta says of itself. Pure; knows no dtype, only the width of an element.

Layout: header (magic, width, elements, digest of base, digest of result) | for every PIECE elements: changed, bytes of gaps, bytes of xors
(3 × u32) | zstd of the gaps between changed elements, one byte each (255 = go on) | zstd of new xor base: all low bytes, then the next.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import zstandard
from numpy.typing import NDArray

from common.errors import WeightsError

Bytes: TypeAlias = bytes | bytearray | memoryview
Elements: TypeAlias = NDArray[np.unsignedinteger]
Indices: TypeAlias = NDArray[np.int64]

PIECE = 1 << 21
"""Elements that are compressed together."""

_HEADER = struct.Struct("<4sIQ32s32s")
_PIECE_HEADER = struct.Struct("<III")
_MAGIC = b"RFD1"
_LEVEL = 1
_BLOCK = 1 << 16  # words compared at a time: they stay in the cache
_MORE = 255
_TYPES: dict[int, type[np.unsignedinteger]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def encode_delta(base: Bytes, new: Bytes, *, width: int, base_digest: str, digest: str) -> bytes | None:
    """None where a delta is not worth it. The digests are sha256, in hexadecimal, of the two tensors."""
    if width not in _TYPES or len(base) != len(new) or len(new) % width:
        return None
    old_E, new_E = np.frombuffer(base, _TYPES[width]), np.frombuffer(new, _TYPES[width])
    parts = [_HEADER.pack(_MAGIC, width, len(new_E), bytes.fromhex(base_digest), bytes.fromhex(digest))]
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    for at in range(0, len(new_E), PIECE):
        changed_C = _changed(old_E[at : at + PIECE], new_E[at : at + PIECE])
        if len(changed_C) > _most_changes(min(PIECE, len(new_E) - at)):
            return None
        xors = _planes(np.bitwise_xor(old_E[at : at + PIECE][changed_C], new_E[at : at + PIECE][changed_C]))
        gaps, low = compressor.compress(_gaps(changed_C)), compressor.compress(xors)
        parts += [_PIECE_HEADER.pack(len(changed_C), len(gaps), len(low)), gaps, low]
    delta = b"".join(parts)
    return delta if len(delta) < len(new) else None


def apply_deltas(tensor: bytearray, digest: str, deltas: Sequence[Bytes]) -> str:
    """Changes the tensor, which has this digest, into what it is after all of them, oldest first; returns its digest then.
    Raises WeightsError; the tensor is then of no use."""
    now = bytes.fromhex(digest)
    for delta in deltas:
        now = apply_unchecked(tensor, now, memoryview(delta))
    if deltas and hashlib.sha256(tensor).digest() != now:
        raise WeightsError("a delta gives another digest than it promises: it is damaged")
    return now.hex()


def apply_unchecked(tensor: bytearray, digest: bytes, delta: memoryview) -> bytes:
    """Changes the tensor, which has this digest; returns the digest that it has now if the delta is whole. Raises WeightsError."""
    if len(delta) < _HEADER.size:
        raise WeightsError("a delta ends too early: it is damaged")
    magic, width, elements, before, after = _HEADER.unpack_from(delta)
    if magic != _MAGIC or width not in _TYPES:
        raise WeightsError("these bytes are no delta of this version of Reflux")
    if elements * width != len(tensor):
        raise WeightsError(f"a delta for {elements} elements of {width} bytes is not for a tensor of {len(tensor)} bytes")
    if before != digest:
        raise WeightsError("a delta is for another base: it was applied already, or one before it is missing")
    new_E: Elements = np.frombuffer(tensor, _TYPES[width])
    for at, changed, gaps, xors in _pieces(delta[_HEADER.size :], elements, width):
        changed_C = _indices(gaps, changed)
        if changed and not 0 <= int(changed_C[-1]) < min(PIECE, elements - at):
            raise WeightsError("a delta changes elements that are not there: it is damaged")
        new_E[at : at + PIECE][changed_C] ^= _elements(xors, width)
    return bytes(after)


def _pieces(delta: memoryview, elements: int, width: int) -> Iterator[tuple[int, int, bytes, bytes]]:
    """First element, number of changes, gaps and xors of each; nothing is unpacked beyond what a piece can hold."""
    decompressor = zstandard.ZstdDecompressor()
    for at in range(0, elements, PIECE):
        if len(delta) < _PIECE_HEADER.size:
            raise WeightsError("a delta ends too early: it is damaged")
        changed, gap_bytes, xor_bytes = _PIECE_HEADER.unpack_from(delta)
        room = min(PIECE, elements - at)
        if changed > _most_changes(room) or len(delta) < _PIECE_HEADER.size + gap_bytes + xor_bytes:
            raise WeightsError("a piece of a delta says more than it has: it is damaged")
        gaps = delta[_PIECE_HEADER.size : _PIECE_HEADER.size + gap_bytes]
        xors = delta[_PIECE_HEADER.size + gap_bytes : _PIECE_HEADER.size + gap_bytes + xor_bytes]
        delta = delta[_PIECE_HEADER.size + gap_bytes + xor_bytes :]
        planes = _unpacked(decompressor, xors, changed * width)
        if len(planes) != changed * width:
            raise WeightsError("a piece of a delta has fewer changes than it says: it is damaged")
        yield at, changed, _unpacked(decompressor, gaps, room // _MORE + changed), planes
    if len(delta):
        raise WeightsError("a delta goes on behind its end: it is damaged")


def _most_changes(room: int) -> int:
    """Where more of a piece has changed, there is no delta: it would be about as large as what it is for."""
    return room // 3 + 64


def _unpacked(decompressor: zstandard.ZstdDecompressor, packed: memoryview, most: int) -> bytes:
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= most:
            raise WeightsError(f"a piece of a delta unpacks to {size} bytes where {most} are the most: it is damaged")
        return decompressor.decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WeightsError(f"a piece of a delta cannot be unpacked ({error}): it is damaged") from None


def _changed(old_E: Elements, new_E: Elements) -> Indices:
    """Where they differ, ascending. Eight bytes are compared at once; what differs there is looked at closer."""
    shift = (8 // new_E.itemsize).bit_length() - 1
    whole = len(new_E) >> shift << shift
    old_W, new_W = old_E[:whole].view(np.uint64), new_E[:whole].view(np.uint64)
    found = [_changed_of(old_W[at : at + _BLOCK], new_W[at : at + _BLOCK], at, shift, new_E.dtype) for at in range(0, len(new_W), _BLOCK)]
    return np.concatenate([*found, np.flatnonzero(old_E[whole:] != new_E[whole:]) + whole])


def _changed_of(old_W: Elements, new_W: Elements, at: int, shift: int, dtype: np.dtype[np.unsignedinteger]) -> Indices:
    words = np.flatnonzero(old_W != new_W)
    inside = np.flatnonzero((old_W[words] ^ new_W[words]).view(dtype))
    found: Indices = words[inside >> shift]
    found += at
    found <<= shift
    inside &= (1 << shift) - 1
    found += inside
    return found


def _gaps(changed_C: Indices) -> bytes:
    """How many unchanged elements lie before each changed one: as many 255 as fit, then the rest."""
    gaps = np.diff(changed_C, prepend=-1) - 1
    wide = np.flatnonzero(gaps >= _MORE)
    more = gaps[wide] // _MORE
    gaps[wide] -= more * _MORE
    return np.insert(gaps.astype(np.uint8), np.repeat(wide, more), np.uint8(_MORE)).tobytes()


def _indices(gaps: bytes, changed: int) -> Indices:
    coded = np.frombuffer(gaps, np.uint8)
    ends = np.flatnonzero(coded != _MORE)
    if len(ends) != changed or (changed and int(ends[-1]) != len(coded) - 1):
        raise WeightsError("the gaps of a delta are not as many as its changes: it is damaged")
    found: Indices = np.cumsum(coded, dtype=np.int64)[ends]
    return found + np.arange(changed, dtype=np.int64)


def _planes(xor_C: Elements) -> bytes:
    return b"".join((xor_C >> 8 * plane).astype(np.uint8).tobytes() for plane in range(xor_C.itemsize))


def _elements(planes: bytes, width: int) -> Elements:
    bytes_WC = np.frombuffer(planes, np.uint8).reshape(width, -1)
    xor_C: Elements = bytes_WC[0].astype(_TYPES[width])
    for plane in range(1, width):
        xor_C |= bytes_WC[plane].astype(_TYPES[width]) << 8 * plane
    return xor_C
