"""Frames: every message comes back, arrays are views, and no bytes whatever raise anything but WireError."""

from __future__ import annotations

import struct
from dataclasses import fields, is_dataclass
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from common.codec import MAX_FRAME_BYTES, SCHEMA, decode, encode
from common.errors import WireError
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

counts = st.integers(0, 2**40)
names = st.text(max_size=8)
floats32 = st.floats(width=32, allow_nan=False)
versions = st.builds(Version, counts, counts)


def ids(length: int) -> st.SearchStrategy[Any]:
    return arrays.arrays(np.int32, length)


def logprobs(shape: int | tuple[int, int]) -> st.SearchStrategy[Any]:
    return arrays.arrays(np.float32, shape, elements=floats32)


sampling = st.builds(Sampling, st.floats(0, 2), counts, st.lists(counts, max_size=3).map(tuple), st.floats(0, 1), counts)
slips = st.lists(st.builds(TeacherShare, names, st.floats(0, 1)), max_size=3).map(tuple)
prompts = st.integers(0, 9).flatmap(ids)
tickets = st.builds(Ticket, counts, counts, names, prompts, sampling, slips, versions, st.dictionaries(names, names, max_size=2))
finishes = st.sampled_from(["stop", "length"])


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    tokens = draw(st.integers(0, 9))
    cut = draw(st.integers(0, tokens))
    spans = (Span(*draw(versions), cut, draw(st.booleans())), Span(*draw(versions), tokens - cut, True))
    mask = draw(st.none() | arrays.arrays(np.uint8, tokens))
    width = draw(st.integers(0, 3))
    tops = (draw(arrays.arrays(np.int32, (tokens, width))), draw(logprobs((tokens, width)))) if width else ()
    return Rollout(draw(tickets), Completion(draw(ids(tokens)), draw(logprobs(tokens)), spans, draw(finishes), mask, *tops))


@st.composite
def scored_rollouts(draw: st.DrawFn) -> ScoredRollout:
    rollout = draw(rollouts())
    length = len(rollout.completion.response_ids)
    scores = []
    for width in draw(st.lists(st.integers(0, 3), max_size=2)):
        top_ids = draw(arrays.arrays(np.int32, (length, width))) if width else None
        top_logprobs = draw(logprobs((length, width))) if width else None
        scores.append(TeacherScore(draw(names), draw(names), draw(logprobs(length)), top_ids, top_logprobs, draw(counts)))
    hops = draw(st.lists(st.builds(Hop, names, counts, counts, counts), max_size=1 + len(scores)))
    return ScoredRollout(rollout, tuple(scores), tuple(hops))


@st.composite
def records(draw: st.DrawFn) -> StepRecord:
    payloads = tuple(draw(st.lists(st.binary(max_size=9), max_size=4)))
    numbers = st.tuples(*[counts] * len(payloads))
    return StepRecord(draw(counts), draw(counts), draw(numbers), draw(numbers), draw(counts), draw(names), payloads, draw(counts))


manifests = st.builds(
    WeightManifest,
    versions,
    st.sampled_from(["full", "delta"]),
    names,
    st.lists(st.builds(WeightFile, names, counts, names), max_size=2).map(tuple),
    st.dictionaries(names, names, max_size=3),
    st.none() | versions,
)
evaluated = st.builds(Evaluated, names, counts, versions, st.booleans(), prompts, finishes)
messages = st.one_of(tickets, rollouts(), scored_rollouts(), evaluated, records(), manifests)


def plain(value: Any) -> Any:
    """A message as nested tuples that compare by value, with the dtype and shape of every array."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, float):
        return repr(value)  # NaN equals itself
    if is_dataclass(value):
        return (type(value), *(plain(getattr(value, field.name)) for field in fields(value)))
    if isinstance(value, tuple):
        return (type(value), *(plain(part) for part in value))
    return value


def example(top_k: int = 2) -> ScoredRollout:
    ticket = Ticket(5, 1, "p", np.arange(3, dtype=np.int32), Sampling(1.0, 8, (2,)), (TeacherShare("t", 1.0),), Version(1, 2), {"a": "b"})
    completion = Completion(
        np.arange(4, dtype=np.int32), np.full(4, -0.5, np.float32), (Span(1, 2, 4, True),), "stop", np.ones(4, np.uint8)
    )
    tops = (np.zeros((4, top_k), np.int32), np.zeros((4, top_k), np.float32))
    hops = (Hop("producer", 1, 2, 3), Hop("scorer", 4, 5, 6))
    return ScoredRollout(Rollout(ticket, completion), (TeacherScore("t", "d", np.zeros(4, np.float32), *tops),), hops)


@settings(max_examples=150, deadline=None)
@given(messages)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    assert plain(decode(encode(message), type(message))) == plain(message)


@settings(max_examples=40, deadline=None)
@given(messages)
def test_every_truncation_is_refused(message: Message) -> None:
    frame = encode(message)
    for size in range(len(frame)):
        with pytest.raises(WireError):
            decode(frame[:size])


@settings(max_examples=150, deadline=None)
@given(messages, st.data())
def test_flipped_bytes_are_refused_or_give_a_message_that_fits(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for at in data.draw(st.lists(st.integers(0, len(frame) - 1), min_size=1, max_size=4)):
        frame[at] = data.draw(st.integers(0, 255))
    try:
        read = decode(bytes(frame))
    except WireError:
        return
    assert plain(decode(encode(read))) == plain(read)


headers = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=30,
)


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 8), headers, st.binary(max_size=24))
def test_no_header_of_the_wrong_kinds_raises_anything_else(kind: int, header: Any, tail: bytes) -> None:
    with pytest.raises(WireError):
        decode(framed(kind, msgpack.packb(header), tail))


def framed(kind: int, header: bytes, tail: bytes = b"", schema: int = SCHEMA) -> bytes:
    return struct.pack("<4sHHI", b"RFX1", schema, kind, len(header)) + header + bytes(-len(header) % 4) + tail


def tampered(message: Message, change: Any) -> bytes:
    """The frame of a message with its header changed in place."""
    frame = encode(message)
    kind, length = struct.unpack_from("<HI", frame, 6)
    header = msgpack.unpackb(frame[12 : 12 + length])
    change(header)
    return framed(kind, msgpack.packb(header), frame[12 + length + -length % 4 :])


def put(*path_and_value: Any) -> Any:
    """A change that sets header[path…] to the last argument."""
    *path, last, value = path_and_value

    def change(header: Any) -> None:
        for step in path:
            header = header[step]
        header[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put(0, 0, -4), put(0, 0, 5), put(0, 0, 2**62), put(0, 0, 4.0), put(0, 0, "4"), put(0, 0, None),
        put(0, 2, []), put(0, 2, 0, 2, 3), put(0, 2, 0, 3, 1), put(0, 2, 0, 0, "1"), put(0, 2, [[1, 2, -1, True], [1, 2, 5, True]]),
        put(0, 3, "done"), put(0, 3, ["stop"]), put(0, 1, False),
        put(0, 4, 0, "5"), put(0, 4, 0, True), put(0, 4, 2, b"p"), put(0, 4, 3, -3), put(0, 4, 4, [1.0, 8]), put(0, 4, 4, {"a": [1]}),
        put(0, 4, 4, 2, [[2]]), put(0, 4, 4, 0, "1"), put(0, 4, 5, [["t"]]), put(0, 4, 5, [[1, 1.0]]), put(0, 4, 5, [["t", {"x": []}]]),
        put(2, 0, 0, 7), put(2, 0, 1, "1"), put(2, 0, 3, 1.5), put(2, 1, ["scorer", 1, 2]), put(2, [["w", 1, 2, 3]] * 3), put(2, None),
        put(0, 4, 6, [1]), put(0, 4, 6, [1, "2"]), put(0, 4, 7, {"a": 1}), put(0, 4, 7, []),
        put(1, 0, 2, 3), put(1, 0, 3, -2), put(1, 0, 3, 3), put(1, 0, 3, 2**63), put(1, 0, 4, "0"), put(1, 0, 0, 7), put(1, 0, []),
        put(1, 7),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(change: Any) -> None:
    decode(tampered(example(), lambda header: None))
    with pytest.raises(WireError):
        decode(tampered(example(), change))


@pytest.mark.parametrize("sizes", [[-1, 8], [4, 5], [1], [4, 2**63], "ab"])
def test_a_record_whose_payloads_do_not_fit_is_refused(sizes: Any) -> None:
    record = StepRecord(1, 2, (7, 8), (0, 0), 9, "d", (b"abcd", b"efg"))
    with pytest.raises(WireError):
        decode(tampered(record, put(6, sizes)))


def test_another_schema_says_what_to_do() -> None:
    with pytest.raises(WireError, match="a message of schema 9, but this Reflux speaks schema 2: run the same version everywhere"):
        decode(framed(1, b"\x90", schema=9))


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (b"", "a frame of 0 bytes"),
        (b"PK\x03\x04" + bytes(20), "wrong magic"),
        (framed(1, b"\xc1"), "no msgpack"),
        (framed(1, b"\x01"), "no array"),
        (framed(1, b"\x90\x90"), "no msgpack"),
        (framed(99, b"\x90"), "kind 99"),
        (framed(1, b"\x90")[:-1], "does not fit its frame"),
        (struct.pack("<4sHHI", b"RFX1", SCHEMA, 1, 2**32 - 1) + bytes(64), "does not fit its frame"),
        (encode(example()) + bytes(8), "8 bytes too many"),
    ],
)
def test_what_is_no_frame_is_refused_with_a_reason(frame: bytes, sentence: str) -> None:
    with pytest.raises(WireError, match=sentence):
        decode(frame)
    assert MAX_FRAME_BYTES < 2**31


def test_another_message_than_expected_is_refused() -> None:
    with pytest.raises(WireError, match="got a ScoredRollout"):
        decode(encode(example()), Ticket)
    assert isinstance(decode(encode(example()), (Ticket, ScoredRollout)), ScoredRollout)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_arrays_are_read_only_views_of_the_frame(kind: Any) -> None:
    frame = kind(encode(example()))
    read = decode(frame)
    assert isinstance(read, ScoredRollout)
    completion, score = read.rollout.completion, read.scores[0]
    assert completion.response_mask is not None
    assert score.top_ids is not None
    assert score.top_logprobs is not None
    whole = np.frombuffer(frame, np.uint8)
    for array in (
        completion.response_ids,
        completion.logprobs,
        completion.response_mask,
        score.logprobs,
        score.top_ids,
        score.top_logprobs,
    ):
        assert np.shares_memory(array, whole)
        assert not array.flags.writeable
        assert array.flags.aligned


def test_payloads_of_a_record_are_views_that_decode_again() -> None:
    inner = encode(example())
    frame = encode(StepRecord(1, 2, (5, 6), (0, 0), 7, "d", (inner, inner)))
    record = decode(frame)
    assert isinstance(record, StepRecord)
    assert [plain(decode(payload)) for payload in record.payloads] == [plain(example())] * 2
    assert all(np.shares_memory(np.asarray(payload), np.frombuffer(frame, np.uint8)) for payload in record.payloads)


def test_arrays_of_other_kinds_are_converted_if_nothing_is_lost() -> None:
    given_ids = np.arange(8, dtype=np.int64)[::2]
    read = decode(encode(Evaluated("e", 0, Version(1, 0), True, given_ids, "stop")))  # type: ignore[arg-type]
    assert isinstance(read, Evaluated)
    assert read.response_ids.tolist() == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="cannot hold"):
        encode(Evaluated("e", 0, Version(1, 0), True, given_ids + 2**40, "stop"))  # type: ignore[arg-type]


def test_arrays_that_do_not_belong_together_are_not_encoded() -> None:
    completion = example().rollout.completion
    for wrong in (completion._replace(logprobs=np.zeros(3, np.float32)), completion._replace(response_mask=np.ones(5, np.uint8))):
        with pytest.raises(ValueError, match="not as"):
            encode(Rollout(example().rollout.ticket, wrong))
    with pytest.raises(ValueError, match="top-k"):
        encode(example()._replace(scores=(example().scores[0]._replace(top_ids=np.zeros((3, 2), np.int32)),)))
