"""The journal's bytes, read without the code that wrote them.

A segment is a row of frames `length u32 | crc32 u32 | message`; a message is `RFX1 | schema u16 | kind u16 | header length u32 | msgpack
header | buffers`, header and buffers padded to words. Guarantee: what is torn or damaged is reported as Damage, never believed; reading
goes on behind it where the frame's length can still be trusted. Raises OtherSchema where another version of Reflux wrote the run.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple  # Any: a header's values, before they are looked at

import msgpack

SCORED, RECORD, MANIFEST = 3, 5, 6
_SCHEMAS = (1, 2)
_FRAME = struct.Struct("<II")
_MESSAGE = struct.Struct("<4sHHI")


class OtherSchema(Exception):
    """The sentence says which."""


class Span(NamedTuple):
    """So many tokens in a row, sampled by the weights (term, step)."""

    term: int
    step: int
    tokens: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """What a record's payload says of itself; `kept` has a byte for every token, 0 = not sampled by the student."""

    seq: int
    spans: tuple[Span, ...]
    kept: bytes | None


@dataclass(frozen=True, slots=True)
class Record:
    """One journaled step. `fault` says what is wrong with its payloads; `origins`: "entry worker" of each seq, where it is known."""

    term: int
    step: int
    seqs: tuple[int, ...]
    attempts: tuple[int, ...]
    cursor: int
    masked: int
    samples: tuple[Sample, ...]
    fault: str
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Damage:
    """A frame that cannot be believed."""

    file: Path
    at: int

    def __str__(self) -> str:
        return f"{self.file} at byte {self.at}"


def term_directories(journal: Path) -> dict[int, Path]:
    """Lowest term first."""
    named = {int(path.name.removeprefix("term")): path for path in journal.glob("term*") if path.name[4:].isdigit()}
    return dict(sorted(named.items()))


def segments(directory: Path) -> list[Path]:
    """A term's, in order of their first step."""
    return sorted(directory.glob("segment-*.rfx"), key=lambda path: int(path.stem.partition("-")[2]))


def read_term(directory: Path) -> Iterator[Record | Damage]:
    """All frames of a term, in the order of writing."""
    for segment in segments(directory):
        for body in _frames(segment):
            yield body if isinstance(body, Damage) else _record(body)


def last_step(directory: Path) -> int:
    """Of the last whole record in the term's last segment; 0 where there is none."""
    bodies = [body for segment in segments(directory)[-1:] for body in _frames(segment) if isinstance(body, bytes)]
    return int(open_message(bodies[-1], RECORD)[0][1]) if bodies else 0


def _frames(segment: Path) -> Iterator[bytes | Damage]:
    size, at = segment.stat().st_size, 0
    with segment.open("rb") as file:
        while at < size:
            prefix = file.read(_FRAME.size)
            length, crc = _FRAME.unpack(prefix) if len(prefix) == _FRAME.size else (0, 0)
            if not length or at + _FRAME.size + length > size:
                yield Damage(segment, at)
                return
            body = file.read(length)
            yield body if zlib.crc32(body) == crc else Damage(segment, at)
            at += _FRAME.size + length


def _record(body: bytes) -> Record:
    header, at = open_message(body, RECORD)
    term, step, seqs, attempts, cursor, digest, sizes, masked, *rest = header
    payloads = []
    for size in sizes:
        payloads.append(body[at : at + size])
        at += size + -size % 4
    samples, fault = _samples(payloads)
    if hashlib.sha256(b"".join(payloads)).hexdigest() != digest:
        fault = "its payloads do not have the digest that it names"
    return Record(term, step, seqs, attempts, cursor, masked, samples, fault, tuple(rest[0]) if rest else ())


def _samples(payloads: Sequence[bytes]) -> tuple[tuple[Sample, ...], str]:
    try:
        return tuple([_sample(payload) for payload in payloads]), ""
    except (ValueError, TypeError, LookupError, struct.error) as error:
        return (), f"a payload cannot be read ({error})"


def _sample(payload: bytes) -> Sample:
    (rollout, *_), at = open_message(payload, SCORED)
    length, is_masked, spans, _, ticket = rollout
    mask_at = at + 2 * 4 * length  # behind ids and log-probabilities
    return Sample(ticket[0], tuple([Span(*span) for span in spans]), payload[mask_at : mask_at + length] if is_masked else None)


def open_message(message: bytes, kind: int) -> tuple[Any, int]:
    """The header's values, and where the buffers begin."""
    magic, schema, found, length = _MESSAGE.unpack_from(message)
    if magic != b"RFX1" or found != kind:
        raise ValueError(f"not a message of kind {kind}")
    if schema not in _SCHEMAS:
        raise OtherSchema(f"this run speaks message schema {schema}, this audit {_SCHEMAS[-1]}: audit it with the version that wrote it")
    end = _MESSAGE.size + length
    return msgpack.unpackb(message[_MESSAGE.size : end], use_list=False), end + -length % 4
