"""From a /generate reply to arrays. What is returned was checked against what was asked: lengths, echoed ids, ranges; else BadReply.

R response tokens, K top ids. Entry 0 of every prompt list is null by design (nothing predicts the first asked token) and is dropped.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal  # JSON is untyped

import numpy as np

from common.errors import RefluxError
from common.messages import Floats, Ids
from common.sglang.request import GenerateRequest

_LOWEST = -1e4  # nobody samples a token of such a log-probability
_ROUNDING = 1e-5


class BadReply(RefluxError):
    """A reply that does not answer the request; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities of the tokens after position `logprob_start`, and the likeliest ids there, best first."""

    logprobs: Floats  # [R]
    top_ids: Ids  # [R, K]
    top_logprobs: Floats  # [R, K]


@dataclass(frozen=True, slots=True)
class Sampled:
    """An answer. `spans` are the labels of the weights with their tokens; empty where the server does not tell."""

    ids: Ids  # [R]
    logprobs: Floats  # [R]
    spans: tuple[tuple[str, int], ...]
    finish: Literal["stop", "length", "abort"]


def parse_scores(reply: Any, request: GenerateRequest, vocabulary: int) -> Scored:
    """Of a request with `logprob_start`."""
    assert request.logprob_start is not None
    meta = _meta(reply)
    entries = meta.get("input_token_logprobs")
    asked = request.ids[request.logprob_start :]
    if not isinstance(entries, list) or len(entries) != len(asked):
        given = len(entries) if isinstance(entries, list) else "no"
        raise BadReply(f"{given} prompt log-probabilities came for {len(asked)} positions")
    try:
        echoed = np.array([entry[1] for entry in entries], np.int64)
        logprobs = np.array([entry[0] for entry in entries[1:]], np.float32)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise BadReply("the prompt log-probabilities are no [log-probability, id, text] entries") from None
    _compare(echoed, asked, vocabulary)
    rows = max(0, len(asked) - 1)
    if not request.top:
        return Scored(logprobs, np.zeros((rows, 0), np.int32), np.zeros((rows, 0), np.float32))
    ids, tops = _tops(meta, rows, request.top)
    if ids.size and (ids.min() < 0 or ids.max() >= vocabulary):
        raise BadReply(f"a top id lies outside the vocabulary of {vocabulary}")
    return Scored(logprobs, ids, tops)


def tells_flat(reply: Any) -> bool:
    """Whether the top ids of a reply that was parsed came as flat arrays."""
    return "input_top_logprobs_shape" in reply["meta_info"]


def parse_sampled(reply: Any, request: GenerateRequest, vocabulary: int) -> Sampled:
    """Of a request that samples."""
    meta = _meta(reply)
    prompt = meta.get("prompt_tokens", len(request.ids))
    if prompt != len(request.ids):
        raise BadReply(f"the server read {prompt} prompt tokens, not {len(request.ids)}")
    finish = _finish(meta)
    ids, logprobs = _answer(reply, meta)
    if len(ids) > request.max_new_tokens or (not len(ids) and finish != "abort"):
        raise BadReply(f"{len(ids)} tokens came where 1 to {request.max_new_tokens} were asked for")
    if len(ids) and (ids.min() < 0 or ids.max() >= vocabulary):
        raise BadReply(f"a sampled id lies outside the vocabulary of {vocabulary}")
    if not ((logprobs <= _ROUNDING) & (logprobs > _LOWEST)).all():  # a NaN makes it false
        raise BadReply("a sampled token has a log-probability that is NaN, positive or below -1e4")
    return Sampled(ids.astype(np.int32), np.minimum(logprobs, np.float32(0)), _spans(meta, len(ids)), finish)


def _meta(reply: Any) -> dict[str, Any]:
    meta = reply.get("meta_info") if isinstance(reply, dict) else None
    if not isinstance(meta, dict):
        raise BadReply("the reply has no meta_info")
    return meta


def _compare(echoed: np.ndarray, asked: Ids, vocabulary: int) -> None:
    """The server echoes id vocabulary − 1 as 0 (a clip that is off by one); its log-probability is right."""
    differs = (echoed != asked) & ~((asked == vocabulary - 1) & (echoed == 0))
    if differs.any():
        place = int(np.argmax(differs))
        raise BadReply(f"the server scored id {echoed[place]} at position {place}, not {asked[place]}")


def _tops(meta: dict[str, Any], rows: int, top: int) -> tuple[Ids, Floats]:
    try:
        ids, tops = _flat(meta) if "input_top_logprobs_shape" in meta else _nested(meta["input_top_logprobs"])
    except (TypeError, ValueError, IndexError, KeyError, OverflowError, binascii.Error):
        raise BadReply("the top ids are in no format that this version knows") from None
    if ids.shape != tops.shape or (rows and ids.shape != (rows, top)) or len(ids) != rows:
        raise BadReply(f"top ids of shape {list(ids.shape)} came where [{rows}, {top}] were asked for")
    return ids, tops


def _flat(meta: dict[str, Any]) -> tuple[Ids, Floats]:
    rows, k = meta["input_top_logprobs_shape"]
    first = 1 - meta.get("input_top_logprobs_null_prefix", 1)
    if first not in {0, 1}:
        raise ValueError(first)
    ids = _column(meta, "idx", "int32").astype(np.int32).reshape(rows, k)
    tops = _column(meta, "val", "float32").astype(np.float32).reshape(rows, k)
    return ids[first:], tops[first:]


def _column(meta: dict[str, Any], name: str, kind: str) -> np.ndarray:
    packed = meta.get(f"input_top_logprobs_{name}_flat_b64")
    if packed is None:
        return np.array(meta[f"input_top_logprobs_{name}_flat"], kind)
    if meta.get(f"input_top_logprobs_{name}_flat_b64_dtype", kind) != kind:
        raise ValueError(name)
    return np.frombuffer(base64.b64decode(packed, validate=True), np.dtype(kind).newbyteorder("<"))


def _nested(entries: Sequence[Any]) -> tuple[Ids, Floats]:
    rows = entries[1:]
    ids = np.array([[entry[1] for entry in row] for row in rows], np.int32)
    tops = np.array([[entry[0] for entry in row] for row in rows], np.float32)
    return ids, tops


def _finish(meta: dict[str, Any]) -> Literal["stop", "length", "abort"]:
    reason = meta.get("finish_reason")
    kind = reason.get("type") if isinstance(reason, dict) else reason
    match kind:
        case "stop" | "length" | "abort":
            return kind  # type: ignore[no-any-return]  # JSON
    raise BadReply(f"the answer ended for a reason that is unknown: {str(reason)[:80]}")


def _answer(reply: dict[str, Any], meta: dict[str, Any]) -> tuple[np.ndarray, Floats]:
    try:
        entries = meta["output_token_logprobs"] or []
        ids = np.array([entry[1] for entry in entries], np.int64)
        logprobs = np.array([entry[0] for entry in entries], np.float32)
        listed = np.array(reply.get("output_ids", ids), np.int64)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise BadReply("the answer's log-probabilities are no [log-probability, id, text] entries") from None
    if not np.array_equal(ids, listed):
        raise BadReply("the answer's ids and the ids of its log-probabilities differ")
    return ids, logprobs


def _spans(meta: dict[str, Any], tokens: int) -> tuple[tuple[str, int], ...]:
    spans = meta.get("weight_versions")
    if not isinstance(spans, list) or not spans:
        return ()
    try:
        counted = [(str(span["version"]), int(span["start"]), int(span["end"])) for span in spans]
    except (TypeError, ValueError, KeyError):
        raise BadReply("weight_versions is no list of version, start and end") from None
    edge = 0
    for _, start, end in counted:
        if start != edge or end < start:
            raise BadReply(f"weight_versions has a gap at token {edge}")
        edge = end
    if edge != tokens:
        raise BadReply(f"weight_versions covers {edge} of {tokens} tokens")
    return tuple((label, end - start) for label, start, end in counted if end > start)
