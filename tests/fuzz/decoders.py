"""What reads bytes of strangers: each as a function of bytes that may end in nothing but its declared error, and real inputs to begin with.

`codec`: frames of the bus. `manifest`: a version's manifest and the weight file it names. `journal`: a segment. `config`: a run's TOML.
`prompts`: JSONL and Parquet. `delta`: the difference between two versions of a tensor. The first byte of a journal's,
manifest's or delta's input says which part the rest stands for, so that mutations get past the checksums.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.codec import decode, encode
from common.config import load_config
from common.errors import ConfigError, OtherSchema, WeightsError, WireError
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
from common.weights.base import RawTensor
from common.weights.delta import apply_deltas, encode_delta
from common.weights.directory import MANIFEST_FILE, MODEL_FILE, DirectoryStore
from common.weights.tensorfile import check_tensors
from learner.journal import records, term_directory
from learner.prompts.prompt import check_answers, prepare_prompts
from learner.prompts.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "arithmetic"

Decoder = Callable[[bytes], None]
_scratch = tempfile.TemporaryDirectory(prefix="reflux-fuzz-")
_place = Path(_scratch.name)
_BEFORE = np.random.default_rng(1).bytes(4000)


def codec(data: bytes) -> None:
    """WireError, or a message that can be sent on."""
    try:
        message = decode(data)
    except WireError:
        return
    assert encode(decode(encode(message))) == encode(message)


def journal(data: bytes) -> None:
    """What cannot be read ends the reading or is passed over; only another version's record is an error."""
    directory = term_directory(_place / "journal", 1)
    directory.mkdir(parents=True, exist_ok=True)
    body = data[1:]
    framed = body if data[:1] < b"\x80" else struct.pack("<II", len(body), zlib.crc32(body)) + body
    (directory / "segment-00000001.rfx").write_bytes(framed)
    with suppress(OtherSchema):
        for record in records(_place / "journal", 1):
            assert isinstance(record, StepRecord)
            for payload in record.payloads:
                codec(bytes(payload))


def manifest(data: bytes) -> None:
    """WeightsError, or a directory whose bytes are those of the manifest."""
    store, kind, body = DirectoryStore(_place / "weights"), data[:1], data[1:]
    directory = store.root / "term000001-step00000002"
    directory.mkdir(parents=True, exist_ok=True)
    if kind < b"\x80":
        (directory / MODEL_FILE).write_bytes(MODEL)
        (directory / MANIFEST_FILE).write_bytes(body)
        with suppress(WeightsError):
            store._fetch(store._manifest_of(Version(1, 2)))
        return
    (directory / "hostile").write_bytes(body)
    try:
        with (directory / "hostile").open("rb") as file:
            check_tensors(file, WeightFile(MODEL_FILE, len(body), ""))
    except WeightsError:
        return


def config(data: bytes) -> None:
    """ConfigError, or a configuration."""
    file = _place / "run.toml"
    file.write_bytes(data)
    with suppress(ConfigError):
        load_config(file).identity()


class _Student:
    """As strict as the real one: its tokenizer refuses what is no UTF-8."""

    vocabulary = 512

    def encode(self, texts: Sequence[str], *, chats: bool) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def render(self, messages: list[dict[str, Any]], where: str) -> str:
        return json.dumps(messages, default=str)


def prompts(data: bytes) -> None:
    """ConfigError, or prompts that can be sent."""
    file = _place / ("prompts.parquet" if data[:4] == b"PAR1" else "prompts.jsonl")
    file.write_bytes(data)
    student: Any = _Student()
    try:
        rows, _ = read_rows(str(file), "data.prompts")
        check_answers([row for row in rows if "answer" in row.fields])
        for prompt in prepare_prompts(rows, student, (4096, "data.max_prompt_tokens"), None):
            ticket = Ticket(0, 0, "p", prompt.ids, Sampling(1.0, 4, ()), (), Version(0, 0), prompt.metadata)
            codec(encode(ticket))
    except ConfigError:
        return


def delta(data: bytes) -> None:
    """WeightsError, or a tensor with the digest that is told: who forges both is found out by the manifest."""
    tensor = bytearray(_BEFORE[:-2] if data[:1] < b"\x80" else _BEFORE)
    length, digest = len(tensor), hashlib.sha256(tensor).hexdigest()
    with suppress(WeightsError):
        told = apply_deltas(tensor, digest, [data[1:]])
        assert (len(tensor), hashlib.sha256(tensor).hexdigest()) == (length, told)


def _after(base: bytes, width: int) -> bytes:
    new = bytearray(base)
    for at in range(5 * width, len(new), 331 * width):
        new[at] ^= 3
    return bytes(new)


def _deltas() -> list[bytes]:
    found = []
    for mark, width, base in ((b"\0", 2, _BEFORE[:-2]), (b"\xff", 4, _BEFORE)):
        new = _after(base, width)
        digests = [hashlib.sha256(tensor).hexdigest() for tensor in (base, new)]
        made = encode_delta(base, new, width=width, base_digest=digests[0], digest=digests[1])
        assert made is not None
        found.append(mark + made)
    return found


def _model() -> bytes:
    store = DirectoryStore(_place / "made")
    tensors = {"a": RawTensor("F32", (2, 3), bytes(24)), "b.c": RawTensor("BF16", (4,), bytes(8))}
    asyncio.run(store.put(Version(1, 2), tensors))
    return (store.root / "term000001-step00000002" / MODEL_FILE).read_bytes()


def _messages() -> list[Message]:
    ids, logprobs = np.arange(6, dtype=np.int32), np.full(6, -0.5, np.float32)
    ticket = Ticket(7, 1, "12/0", ids[:3], Sampling(1.0, 64, (2, 3)), (TeacherShare("maths", 1.0),), Version(1, 4), {"answer": "41"})
    completion = Completion(ids, logprobs, (Span(1, 3, 2, True), Span(1, 4, 4, False)), "stop", np.ones(6, np.uint8))
    rollout = Rollout(ticket, completion)
    top = (np.zeros((6, 2), np.int32), np.zeros((6, 2), np.float32))
    hops = (Hop("producer-a", 1700000000000, 1700000000001, 1700000000002), Hop("scorer-b", 0, 3, 4))
    scored = ScoredRollout(rollout, (TeacherScore("maths", "d" * 8, logprobs, *top),), hops)
    record = StepRecord(1, 1, (7, 8), (1, 0), 9, "d" * 8, (encode(scored), encode(scored)), 3)
    made = decode((_place / "made" / "term000001-step00000002" / MANIFEST_FILE).read_bytes(), WeightManifest)
    assert isinstance(made, WeightManifest)
    wrong = replace(made, files=(*made.files, WeightFile("../up", 3, "x")), base=Version(1, 1))
    return [ticket, rollout, scored, ScoredRollout(rollout), Evaluated("e", 3, Version(1, 2), True, ids, "length"), record, made, wrong]


def _seeds() -> dict[str, list[bytes]]:
    frames = [encode(message) for message in _messages()]
    record, manifests = frames[5], frames[6:]
    whole = struct.pack("<II", len(record), zlib.crc32(record)) + record
    rows = (EXAMPLE / "train.jsonl").read_bytes().split(b"\n")[:3]
    chat = [b'{"messages": [{"role": "user", "content": "1+1="}], "answer": 2, "teacher": ["a", "b"], "metadata": {"k": null, "l": [1]}}']
    return {
        "codec": frames,
        "manifest": [*(b"\0" + frame for frame in manifests), b"\xff" + MODEL],
        "journal": [b"\0" + whole, b"\0" + whole * 2, b"\xff" + record],
        "config": [(EXAMPLE / "run.toml").read_bytes(), b'[run]\nname = "r"\n[bus]\nurl = "redis://:p@h/0"\n[teachers.t]\npath = "t"\n'],
        "delta": _deltas(),
        "prompts": [b"\n".join(rows), *chat, b'{"prompt": [1, 2, 3]}\n{"prompt": "\\ud83d\\ude00"}', _parquet()],
    }


def _parquet() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.table({"prompt": ["1+1=", "2+2="], "answer": ["2", None]}), out)
    return out.getvalue()


MODEL = _model()
DECODERS: dict[str, Decoder] = {one.__name__: one for one in (codec, manifest, journal, config, prompts, delta)}
SEEDS = _seeds()
