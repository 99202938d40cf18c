"""Messages to bytes and back, for Redis, the journal and HTTP: only data, never code (invariant P10).

A frame is `RFX1 | schema u16 | kind u16 | header length u32 | header | pad to 8 | buffers`. The header is msgpack of small values; every
array stands in it as [length, …] and its raw little-endian bytes follow in the tail, 8-byte aligned, so that decoding gives read-only
numpy views of the frame without a copy. Anything unexpected raises WireError; nothing is allocated beyond the frame itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any  # the header's values are only known after they are checked

import msgpack
import numpy as np

from common.errors import WireError
from common.messages import (
    Completion,
    Evaluated,
    Message,
    Rollout,
    Sampling,
    ScoredRollout,
    Span,
    StepRecord,
    TeacherScore,
    TeacherShare,
    Ticket,
    Version,
    WeightFile,
    WeightManifest,
)

SCHEMA = 1
MAX_FRAME_BYTES = 1 << 30
MAX_HEADER_BYTES = 1 << 24

_MAGIC = b"RFX1"
_PREFIX = struct.Struct("<4sHHI")
_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")
_UINT8 = np.dtype("u1")
_PADS = tuple(bytes(n) for n in range(8))

Buffer = bytes | bytearray | memoryview
Header = tuple[Any, ...]


def encode(message: Message) -> bytes:
    """The frame of one message."""
    kind, pack, _ = _BY_TYPE[type(message)]
    tail: list[Buffer] = []
    header: bytes = msgpack.packb(pack(message, tail))
    parts: list[Buffer] = [
        _PREFIX.pack(_MAGIC, SCHEMA, kind, len(header)),
        header,
        _PADS[-(_PREFIX.size + len(header)) % 8],
    ]
    for buffer in tail:
        parts += (buffer, _PADS[-len(buffer) % 8])
    return b"".join(parts)


def decode(frame: Buffer, expect: type[Message] | tuple[type[Message], ...] | None = None) -> Message:
    """The message of one frame; arrays are read-only views into it. Raises WireError."""
    kind, header, tail_at = _open(frame)
    try:
        reader = _Tail(memoryview(frame).toreadonly(), tail_at)
        unpack = _BY_KIND[kind]
        message = unpack(header, reader)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WireError(f"a frame of kind {kind} has a malformed header: {error}") from error
    if reader.at != len(frame):
        raise WireError(f"a frame of kind {kind} has {len(frame) - reader.at} bytes too many or too few")
    if expect is not None and not isinstance(message, expect):
        raise WireError(f"expected {expect}, got a {type(message).__name__}")
    return message


def _open(frame: Buffer) -> tuple[int, Header, int]:
    if not _PREFIX.size <= len(frame) <= MAX_FRAME_BYTES:
        raise WireError(f"a frame of {len(frame)} bytes: it must have {_PREFIX.size} to {MAX_FRAME_BYTES}")
    magic, schema, kind, length = _PREFIX.unpack_from(frame)
    if magic != _MAGIC:
        raise WireError("these bytes are no Reflux message (wrong magic)")
    if schema != SCHEMA:
        raise WireError(f"a message of schema {schema}, but this Reflux speaks schema {SCHEMA}: run the same version everywhere")
    end = _PREFIX.size + length
    if length > MAX_HEADER_BYTES or end > len(frame):
        raise WireError(f"a header of {length} bytes does not fit its frame")
    try:
        header = msgpack.unpackb(memoryview(frame)[_PREFIX.size : end], use_list=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"a header that is no msgpack: {error}") from error
    if not isinstance(header, tuple):
        raise WireError("a header that is no array")
    return kind, header, end + -end % 8


class _Tail:
    """Hands out the buffers behind the header, in order."""

    __slots__ = ("at", "frame")

    def __init__(self, frame: Buffer, at: int) -> None:
        self.frame = frame
        self.at = at

    def array(self, dtype: np.dtype[Any], count: int) -> Any:
        start = self.at
        if count <= 0:
            if count:
                raise ValueError(f"an array of {count} elements")
            return np.empty(0, dtype)
        self.at = start + (count * dtype.itemsize + 7 & -8)
        return np.frombuffer(self.frame, dtype, count, start)

    def matrix(self, dtype: np.dtype[Any], rows: int, columns: int) -> Any:
        if rows < 0 or columns < 0:
            raise ValueError(f"a matrix of {rows} x {columns}")
        return self.array(dtype, rows * columns).reshape(rows, columns)

    def bytes(self, size: int) -> memoryview:
        start = self.at
        if not 0 <= size <= len(self.frame) - start:
            raise ValueError(f"a buffer of {size} bytes does not fit")
        self.at = start + size + -size % 8
        return memoryview(self.frame)[start : start + size]


def _put(tail: list[Buffer], array: Any, dtype: np.dtype[Any]) -> int:
    """Appends the raw bytes; the number of elements goes to the header."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        array = np.ascontiguousarray(array, dtype)
    tail.append(array.data.cast("B") if array.size else b"")
    return int(array.size)


def _pack_ticket(t: Ticket, tail: list[Buffer]) -> Header:
    s = t.sampling
    return (
        t.seq,
        t.attempt,
        t.prompt_id,
        _put(tail, t.prompt_ids, _INT32),
        (s.temperature, s.max_new_tokens, s.stop_token_ids, s.top_p, s.top_k),
        t.slip,
        t.min_version,
        dict(t.metadata),
    )


def _unpack_ticket(h: Header, tail: _Tail) -> Ticket:
    seq, attempt, prompt_id, count, sampling, slip, min_version, metadata = h
    _check(type(seq) is int and type(attempt) is int and type(prompt_id) is str and type(metadata) is dict, "a ticket")
    shares = tuple(TeacherShare(name, weight) for name, weight in slip)
    prompt = tail.array(_INT32, count)
    return Ticket(seq, attempt, prompt_id, prompt, Sampling(*sampling), shares, Version(*min_version), metadata)


def _pack_rollout(r: Rollout, tail: list[Buffer]) -> Header:
    c = r.completion
    length = _put(tail, c.response_ids, _INT32)
    _check(_put(tail, c.logprobs, _FLOAT32) == length, "as many log-probabilities as response ids")
    if c.response_mask is not None:
        _check(_put(tail, c.response_mask, _UINT8) == length, "as long a mask as the response")
    return (length, c.response_mask is not None, c.versions, c.finish_reason, _pack_ticket(r.ticket, tail))


def _unpack_rollout(h: Header, tail: _Tail) -> Rollout:
    length, masked, versions, finish_reason, ticket = h
    ids, logprobs = tail.array(_INT32, length), tail.array(_FLOAT32, length)
    mask = tail.array(_UINT8, length) if masked else None
    spans = tuple(Span(*span) for span in versions)
    _check(sum(span.tokens for span in spans) == length, "versions that cover the response")
    _check(finish_reason in ("stop", "length"), "a finish reason")
    return Rollout(_unpack_ticket(ticket, tail), Completion(ids, logprobs, spans, finish_reason, mask))


def _pack_score(s: TeacherScore, tail: list[Buffer]) -> Header:
    length = _put(tail, s.logprobs, _FLOAT32)
    width = 0
    if s.top_ids is not None and s.top_logprobs is not None:
        width = s.top_ids.shape[1]
        _check(s.top_ids.shape == s.top_logprobs.shape == (length, width), "top-k arrays [T, K]")
        _put(tail, s.top_ids, _INT32)
        _put(tail, s.top_logprobs, _FLOAT32)
    return (s.teacher, s.digest, length, width, s.clamped)


def _unpack_score(h: Header, tail: _Tail) -> TeacherScore:
    teacher, digest, length, width, clamped = h
    _check(type(teacher) is str and type(digest) is str, "a teacher score")
    logprobs = tail.array(_FLOAT32, length)
    if not width:
        return TeacherScore(teacher, digest, logprobs, None, None, clamped)
    return TeacherScore(teacher, digest, logprobs, tail.matrix(_INT32, length, width), tail.matrix(_FLOAT32, length, width), clamped)


def _pack_scored(s: ScoredRollout, tail: list[Buffer]) -> Header:
    return (_pack_rollout(s.rollout, tail), tuple(_pack_score(score, tail) for score in s.scores))


def _unpack_scored(h: Header, tail: _Tail) -> ScoredRollout:
    rollout = _unpack_rollout(h[0], tail)
    scores = tuple(_unpack_score(score, tail) for score in h[1])
    _check(all(len(s.logprobs) == len(rollout.completion.response_ids) for s in scores), "as many scores as response ids")
    return ScoredRollout(rollout, scores)


def _pack_evaluated(e: Evaluated, tail: list[Buffer]) -> Header:
    return (e.evaluation, e.index, e.version, e.correct, _put(tail, e.response_ids, _INT32), e.finish_reason)


def _unpack_evaluated(h: Header, tail: _Tail) -> Evaluated:
    evaluation, index, version, correct, length, finish_reason = h
    return Evaluated(evaluation, index, Version(*version), correct, tail.array(_INT32, length), finish_reason)


def _pack_record(r: StepRecord, tail: list[Buffer]) -> Header:
    tail += r.payloads
    sizes = tuple(len(payload) for payload in r.payloads)
    return (r.term, r.step, r.seqs, r.attempts, r.cursor, r.digest, sizes, r.masked_tokens)


def _unpack_record(h: Header, tail: _Tail) -> StepRecord:
    term, step, seqs, attempts, cursor, digest, sizes, masked = h
    _check(len(seqs) == len(attempts) == len(sizes), "a step record with one payload per seq")
    return StepRecord(term, step, seqs, attempts, cursor, digest, tuple(tail.bytes(size) for size in sizes), masked)


def _pack_manifest(m: WeightManifest, tail: list[Buffer]) -> Header:  # noqa: ARG001
    return (m.version, m.kind, m.directory, m.files, dict(m.tensors), m.base)


def _unpack_manifest(h: Header, tail: _Tail) -> WeightManifest:  # noqa: ARG001
    version, kind, directory, files, tensors, base = h
    _check(kind in ("full", "delta") and type(directory) is str and type(tensors) is dict, "a weight manifest")
    listed = tuple(WeightFile(*file) for file in files)
    return WeightManifest(Version(*version), kind, directory, listed, tensors, None if base is None else Version(*base))


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"not {what}")


Pack = Callable[[Any, list[Buffer]], Header]
Unpack = Callable[[Header, _Tail], Message]
_KINDS: Sequence[tuple[int, type[Message], Pack, Unpack]] = (
    (1, Ticket, _pack_ticket, _unpack_ticket),
    (2, Rollout, _pack_rollout, _unpack_rollout),
    (3, ScoredRollout, _pack_scored, _unpack_scored),
    (4, Evaluated, _pack_evaluated, _unpack_evaluated),
    (5, StepRecord, _pack_record, _unpack_record),
    (6, WeightManifest, _pack_manifest, _unpack_manifest),
)
_BY_TYPE = {cls: (kind, pack, unpack) for kind, cls, pack, unpack in _KINDS}
_BY_KIND = {kind: unpack for kind, _, _, unpack in _KINDS}
