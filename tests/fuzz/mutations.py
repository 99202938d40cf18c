"""Random changes of real inputs: bits, numbers of all widths, pieces cut, doubled and mixed, and the values inside a frame's header."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    b"{", b"[", b'"', b"null", b"NaN", b"-1", b"1e999", b"\\ud800", b"[[" * 40, b'{"a":' * 40, b"9" * 5000, b"=", b"\n", b"\0", b"'",
    b"true", b"\xff", b"\x91" * 60, b"\x81\xa0", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"1979-99-99", b"../",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**40, -(2**63), 2**64 - 1, 0.5, float("nan"), "", "x" * 99, b"", [], [[]], {}, {"a": {"b": []}}, "\ud7ff",
)  # fmt: skip


def mutated(random_: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, changed one to eight times."""
    data = random_.choice(seeds)
    if random_.random() < 0.4:
        data = _with_another_header(random_, data)
    for _ in range(random_.choice((0, 1, 1, 2, 4, 8))):
        data = random_.choice(_CHANGES)(random_, bytearray(data), seeds)
    return data


def _flip(random_: random.Random, data: bytearray, seeds: list[bytes]) -> bytes:
    if data:
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return bytes(data)


def _number(random_: random.Random, data: bytearray, seeds: list[bytes]) -> bytes:
    width, order = random_.choice((1, 2, 4, 8)), random_.choice(("little", "big"))
    at = random_.randrange(len(data) + 1)
    data[at : at + width] = (random_.choice(NUMBERS) % 256**width).to_bytes(width, order)
    return bytes(data)


def _cut(random_: random.Random, data: bytearray, seeds: list[bytes]) -> bytes:
    begin, end = sorted(random_.randrange(len(data) + 1) for _ in range(2))
    del data[begin : min(end, begin + random_.choice((1, 8, 4096)))]
    return bytes(data)


def _double(random_: random.Random, data: bytearray, seeds: list[bytes]) -> bytes:
    begin, end = sorted(random_.randrange(len(data) + 1) for _ in range(2))
    at = random_.randrange(len(data) + 1)
    return bytes(data[:at] + data[begin:end] * random_.choice((1, 2, 30)) + data[at:])[: 1 << 20]


def _word(random_: random.Random, data: bytearray, seeds: list[bytes]) -> bytes:
    at = random_.randrange(len(data) + 1)
    return bytes(data[:at]) + random_.choice(WORDS) + bytes(data[at + random_.choice((0, 1, 4)) :])


def _mix(random_: random.Random, data: bytearray, seeds: list[bytes]) -> bytes:
    other = random_.choice(seeds)
    at, there = random_.randrange(len(data) + 1), random_.randrange(len(other) + 1)
    return bytes(data[:at]) + other[there:]


_CHANGES = (_flip, _flip, _number, _number, _cut, _double, _word, _mix)


def _with_another_header(random_: random.Random, data: bytes) -> bytes:
    """A value in the header of the first frame in `data` is another one; its length is right again."""
    at = data.find(b"RFX1")
    if at < 0 or len(data) < at + 12:
        return data
    length = struct.unpack_from("<I", data, at + 8)[0]
    end = at + 12 + length
    try:
        header = msgpack.unpackb(data[at + 12 : end], strict_map_key=False)
        changed = msgpack.packb(_replaced(random_, header))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return data
    start = data[at : at + 8] + struct.pack("<I", len(changed))
    return data[:at] + start + changed + bytes(-len(changed) % 4) + data[end + -length % 4 :]


def _replaced(random_: random.Random, value: Any) -> Any:
    if isinstance(value, list) and value and random_.random() < 0.8:
        at = random_.randrange(len(value))
        value[at] = _replaced(random_, value[at])
        return value
    if isinstance(value, dict) and value and random_.random() < 0.8:
        key = random_.choice(list(value))
        value[key] = _replaced(random_, value[key])
        return value
    if type(value) is int and random_.random() < 0.5:
        return value + random_.choice((-1, 1, 4, 2**31))
    return random_.choice(VALUES)
