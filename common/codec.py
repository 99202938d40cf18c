"""Messages to bytes and back, for Redis, the journal and HTTP: only data, never code (invariant P10).

The header of a frame (common/frame.py) is msgpack of small values; every array stands in it as its length, and its raw little-endian bytes
follow in the tail, so that decoding gives read-only numpy views of the frame without a copy. Anything unexpected raises WireError,
whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any  # the header's values are only known after they are checked

import numpy as np

from common.errors import WireError
from common.frame import MAX_FRAME_BYTES, MAX_HEADER_BYTES, MAX_LIST_BYTES, PADS, SCHEMA, Buffer, Header, Parts, close_frame, open_frame
from common.messages import (
    Completion,
    Evaluated,
    Hop,
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

__all__ = ["MAX_FRAME_BYTES", "MAX_HEADER_BYTES", "MAX_LIST_BYTES", "SCHEMA", "Buffer", "decode", "encode"]

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")
_UINT8 = np.dtype("u1")
_FINISH = ("stop", "length")


def encode(message: Message) -> bytes:
    """The frame of one message."""
    kind, pack, _ = _BY_TYPE[type(message)]
    parts: Parts = []
    return close_frame(kind, pack(message, parts), parts, _most_header(kind))


def decode(frame: Buffer, expect: type[Message] | tuple[type[Message], ...] | None = None) -> Message:
    """The message of one frame; arrays are read-only views into it. Raises WireError."""
    if type(frame) is not bytes:
        frame = memoryview(frame).toreadonly().cast("B")
    kind, header, tail_at = open_frame(frame, _most_header)
    try:
        tail = _Tail(frame, tail_at)
        message = _BY_KIND[kind](header, tail)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise WireError(f"a frame of kind {kind} is malformed: {error}") from error
    if tail.at != tail.size:
        raise WireError(f"a frame of kind {kind} has {4 * (tail.size - tail.at)} bytes too many")
    if expect is not None and not isinstance(message, expect):
        raise WireError(f"expected {expect}, got a {type(message).__name__}")
    return message


class _Tail:
    """Hands out the buffers behind the header, in order; it is looked at as words of int32 and of float32."""

    __slots__ = ("at", "float_words", "int_words", "size")

    def __init__(self, frame: bytes | memoryview, start: int) -> None:
        self.int_words = np.frombuffer(frame, _INT32, -1, start) if start < len(frame) else np.empty(0, _INT32)
        self.float_words = self.int_words.view(_FLOAT32)
        self.at = 0
        self.size = len(self.int_words)

    def ints(self, count: int) -> Any:
        start = self.at
        self.at = end = start + count
        if not start <= end <= self.size:
            raise ValueError(f"a buffer of {count} words does not fit")
        return self.int_words[start:end]

    def floats(self, count: int) -> Any:
        start = self.at
        self.at = end = start + count
        if not start <= end <= self.size:
            raise ValueError(f"a buffer of {count} words does not fit")
        return self.float_words[start:end]

    def bytes(self, count: int) -> Any:
        words = self.ints((count + 3) // 4 if count > 0 else count)
        return words.view(_UINT8)[:count]


def _put(parts: Parts, array: Any, dtype: np.dtype[Any]) -> int:
    """Appends the raw bytes of an array of 4-byte elements; the number of elements goes to the header."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        array = _converted(array, dtype)
    parts.append(array)
    size: int = array.size
    return size


def _put_bytes(parts: Parts, buffer: Any) -> int:
    parts += (buffer, PADS[-len(buffer) % 4])
    return len(buffer)


def _converted(array: Any, dtype: np.dtype[Any]) -> Any:
    converted = np.ascontiguousarray(array, dtype)
    if dtype.kind != "f" and not np.array_equal(converted, array):
        raise ValueError(f"an array of {array.dtype} with values that {dtype} cannot hold")
    return converted


def _pack_ticket(t: Ticket, parts: Parts) -> Header:
    s = t.sampling
    sampling = (s.temperature, s.max_new_tokens, s.stop_token_ids, s.top_p, s.top_k)
    length = _put(parts, t.prompt_ids, _INT32)
    return (t.seq, t.attempt, t.prompt_id, length, sampling, t.slip, t.min_version, dict(t.metadata))


def _unpack_ticket(h: Header, tail: _Tail) -> Ticket:
    seq, attempt, prompt_id, length, sampling, slip, min_version, metadata = h
    if not (type(seq) is type(attempt) is int and type(prompt_id) is str and type(metadata) is dict):
        raise ValueError("not a ticket")
    for name, value in metadata.items():
        _must_be(type(name) is type(value) is str, "metadata of texts")
    return Ticket(seq, attempt, prompt_id, tail.ints(length), _sampling(sampling), _slip(slip), _version(min_version), metadata)


def _pack_rollout(r: Rollout, parts: Parts) -> Header:
    c = r.completion
    length = _put(parts, c.response_ids, _INT32)
    _must_be(_put(parts, c.logprobs, _FLOAT32) == length, "as many log-probabilities as response ids")
    if c.response_mask is not None:
        mask = np.ascontiguousarray(c.response_mask, _UINT8)
        _must_be(_put_bytes(parts, mask) == length, "as long a mask as the response")
    width = _pack_tops(c.top_ids, c.top_logprobs, length, parts)
    header = (length, c.response_mask is not None, c.versions, c.finish_reason, _pack_ticket(r.ticket, parts))
    return (*header, width) if width else header


def _unpack_rollout(h: Header, tail: _Tail) -> Rollout:
    length, masked, versions, finish_reason, ticket, *recorded = h
    ids, logprobs = tail.ints(length), tail.floats(length)
    mask = tail.bytes(length) if masked else None
    tops = _unpack_tops(length, *recorded, tail=tail) if recorded else ()
    spans, covered = [], 0
    for term, step, tokens, exact in versions:
        if not (type(term) is type(step) is type(tokens) is int and type(exact) is bool and tokens >= 0):
            raise ValueError("not a span of versions")
        spans.append(Span(term, step, tokens, exact))
        covered += tokens
    if covered != length or finish_reason not in _FINISH:
        raise ValueError("not versions that cover the response, or no finish reason")
    return Rollout(_unpack_ticket(ticket, tail), Completion(ids, logprobs, tuple(spans), finish_reason, mask, *tops))


def _pack_tops(ids: Any, logprobs: Any, length: int, parts: Parts) -> int:
    """The width K of both [T, K]; 0 where there are none."""
    if ids is None or logprobs is None:
        return 0
    width: int = ids.shape[1]
    _must_be(ids.shape == logprobs.shape == (length, width), "top-k arrays [T, K]")
    _put(parts, ids, _INT32)
    _put(parts, logprobs, _FLOAT32)
    return width


def _unpack_tops(length: int, width: int, *, tail: _Tail) -> tuple[Any, Any]:
    if not (type(width) is int and width >= 0):
        raise ValueError("not a number of most likely ids")
    if not width:
        return None, None
    count = length * width
    return tail.ints(count).reshape(length, width), tail.floats(count).reshape(length, width)


def _pack_score(s: TeacherScore, parts: Parts) -> Header:
    length = _put(parts, s.logprobs, _FLOAT32)
    return (s.teacher, s.digest, length, _pack_tops(s.top_ids, s.top_logprobs, length, parts), s.clamped)


def _unpack_score(h: Header, tail: _Tail) -> TeacherScore:
    teacher, digest, length, width, clamped = h
    if not (type(teacher) is type(digest) is str and type(length) is type(clamped) is int):
        raise ValueError("not a teacher's score")
    logprobs = tail.floats(length)
    return TeacherScore(teacher, digest, logprobs, *_unpack_tops(length, width, tail=tail), clamped)


def _pack_scored(s: ScoredRollout, parts: Parts) -> Header:
    return (_pack_rollout(s.rollout, parts), [_pack_score(score, parts) for score in s.scores], s.hops)


def _unpack_scored(h: Header, tail: _Tail) -> ScoredRollout:
    rolled, scored, *told = h
    rollout = _unpack_rollout(rolled, tail)
    scores = tuple([_unpack_score(score, tail) for score in scored])
    for score in scores:
        if len(score.logprobs) != len(rollout.completion.response_ids):
            raise ValueError("not as many scores as response ids")
    return ScoredRollout(rollout, scores, _hops(len(scores), *told))


def _hops(scores: int, told: Header = ()) -> tuple[Hop, ...]:
    _must_be(len(told) <= 1 + scores, "a hop for each worker")
    hops = tuple([Hop(*hop) for hop in told])
    for worker, added, began, done in hops:
        if not (type(worker) is str and type(added) is type(began) is type(done) is int):
            raise ValueError("not a worker's hop")
    return hops


def _pack_evaluated(e: Evaluated, parts: Parts) -> Header:
    return (e.evaluation, e.index, e.version, e.correct, _put(parts, e.response_ids, _INT32), e.finish_reason)


def _unpack_evaluated(h: Header, tail: _Tail) -> Evaluated:
    evaluation, index, version, correct, length, finish_reason = h
    _must_be(type(evaluation) is str and type(index) is int and type(correct) is bool and finish_reason in _FINISH, "a judged answer")
    return Evaluated(evaluation, index, _version(version), correct, tail.ints(length), finish_reason)


def _pack_record(r: StepRecord, parts: Parts) -> Header:
    sizes = [_put_bytes(parts, payload) for payload in r.payloads]
    return (r.term, r.step, r.seqs, r.attempts, r.cursor, r.digest, sizes, r.masked_tokens, r.origins)


def _unpack_record(h: Header, tail: _Tail) -> StepRecord:
    term, step, seqs, attempts, cursor, digest, sizes, masked, origins = h
    _must_be(type(seqs) is type(attempts) is type(origins) is tuple and len(seqs) == len(attempts) == len(sizes), "one payload per seq")
    numbers, texts = {*map(type, (term, step, cursor, masked, *seqs, *attempts))}, {*map(type, (digest, *origins))}
    _must_be(numbers == {int} and texts == {str}, "a step record")
    return StepRecord(term, step, seqs, attempts, cursor, digest, tuple([tail.bytes(size).data for size in sizes]), masked, origins)


def _pack_manifest(m: WeightManifest, parts: Parts) -> Header:  # noqa: ARG001
    return (m.version, m.kind, m.directory, m.files, dict(m.tensors), m.base)


def _unpack_manifest(h: Header, tail: _Tail) -> WeightManifest:  # noqa: ARG001
    version, kind, directory, files, tensors, base = h
    _must_be(kind in ("full", "delta") and type(directory) is str and type(tensors) is dict, "a weight manifest")
    _must_be(all(type(name) is type(digest) is str for name, digest in tensors.items()), "a digest for every tensor")
    listed = tuple([WeightFile(name, size, digest) for name, size, digest in files])
    _must_be(all(type(f.name) is type(f.digest) is str and type(f.bytes) is int for f in listed), "a list of files")
    return WeightManifest(_version(version), kind, directory, listed, tensors, None if base is None else _version(base))


@lru_cache(maxsize=1024)
def _version(pair: tuple[int, int]) -> Version:
    term, step = pair
    _must_be(type(term) is type(step) is int, "a version")
    return Version(term, step)


@lru_cache(maxsize=64)
def _sampling(fields: Header) -> Sampling:
    temperature, max_new_tokens, stops, top_p, top_k = fields
    _must_be(
        type(max_new_tokens) is type(top_k) is int and isinstance(temperature, float | int) and isinstance(top_p, float | int), "sampling"
    )
    _must_be(type(stops) is tuple and all(type(token) is int for token in stops), "stop token ids")
    return Sampling(temperature, max_new_tokens, stops, top_p, top_k)


@lru_cache(maxsize=256)
def _slip(shares: tuple[Header, ...]) -> tuple[TeacherShare, ...]:
    slip = tuple([TeacherShare(teacher, weight) for teacher, weight in shares])
    _must_be(all(type(s.teacher) is str and isinstance(s.weight, float | int) for s in slip), "a slip of teachers")
    return slip


def _must_be(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"not {what}")


def _most_header(kind: int) -> int:
    return MAX_LIST_BYTES if kind in _LISTING else MAX_HEADER_BYTES


Pack = Callable[[Any, Parts], Header]
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
_LISTING = {kind for kind, cls, _, _ in _KINDS if cls in (StepRecord, WeightManifest)}
_BY_KIND = {kind: unpack for kind, _, _, unpack in _KINDS}
