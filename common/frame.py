"""The outside of a frame: `RFX1 | schema u16 | kind u16 | header length u32 | header | buffers`, header and buffers padded to words of 4.

Guarantee: what is no frame of this schema raises WireError before anything is built from it. Only the header takes memory beyond the frame:
at most about 40 bytes for each of its own, and its length, its depth and the number of its maps are limited.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any  # the header's values are only known after they are checked

import msgpack

from common.errors import OtherSchema, WireError

SCHEMA = 2
_READABLE = (1, SCHEMA)
"""Schema 1 has no hops and is otherwise the same: journals of older runs are read."""
MAX_FRAME_BYTES = 1 << 30
MAX_HEADER_BYTES = 1 << 20
MAX_LIST_BYTES = 1 << 23
"""Of a header that lists samples or tensors."""

_MAGIC = b"RFX1"
_PREFIX = struct.Struct("<4sHHI")
PADS = tuple(bytes(n) for n in range(4))

Buffer = bytes | bytearray | memoryview
Header = tuple[Any, ...]
Parts = list[Any]  # bytes, memoryviews and C-contiguous arrays, to be joined


def close_frame(kind: int, header: Header, parts: Parts, most: int) -> bytes:
    """`parts` behind the prefix and `header`, which may have `most` bytes."""
    packed: bytes = msgpack.packb(header)
    if len(packed) > most:
        raise WireError(f"a message of kind {kind} with a header of {len(packed)} bytes: {most} are allowed")
    return b"".join([_PREFIX.pack(_MAGIC, SCHEMA, kind, len(packed)), packed, PADS[-len(packed) % 4], *parts])


def open_frame(frame: Buffer, most: Callable[[int], int]) -> tuple[int, Header, int]:
    """Kind, header, and where the buffers begin; `most` says how long a kind's header may be."""
    if not _PREFIX.size <= len(frame) <= MAX_FRAME_BYTES:
        raise WireError(f"a frame of {len(frame)} bytes: it must have {_PREFIX.size} to {MAX_FRAME_BYTES}")
    magic, schema, kind, length = _PREFIX.unpack_from(frame)
    if magic != _MAGIC:
        raise WireError("these bytes are no Reflux message (wrong magic)")
    if schema not in _READABLE:
        raise OtherSchema(f"a message of schema {schema}, but this Reflux speaks schema {SCHEMA}: run the same version everywhere")
    end = _PREFIX.size + length
    if length > most(kind) or end + -length % 4 > len(frame):
        raise WireError(f"a header of {length} bytes does not fit its frame of {len(frame)}")
    try:
        header = msgpack.unpackb(frame[_PREFIX.size : end], use_list=False, object_hook=_one_map())
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"a header that is no msgpack: {error}") from error
    if type(header) is not tuple:
        raise WireError("a header that is no array")
    return kind, header, end + -length % 4


def _one_map() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """No message has two; a map is what takes most memory for its bytes."""
    maps = 0

    def count(one: dict[str, Any]) -> dict[str, Any]:
        nonlocal maps
        maps += 1
        if maps > 1:
            raise ValueError("a header with more than one map")
        return one

    return count
