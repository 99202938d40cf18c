"""A /generate body as the real server reads it: some mistakes are a 400, some end the whole process.

The texts are those that a real 0.5.23 answered. What this stand-in does not speak (batches, streams, text prompts) is a 400 that says so.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from typing import Any, NoReturn  # JSON

import numpy as np

from common.messages import Ids, Sampling
from common.sglang.shape import ModelShape

_SAMPLING = {
    "max_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "min_new_tokens", "n", "json_schema", "regex", "ebnf", "structural_tag", "ignore_eos",
    "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "stream_interval", "logit_bias", "sampling_seed",
    "custom_params", "beam_width", "watermark", "choice",
}  # fmt: skip


class Declined(Exception):
    """A 400 with this JSON."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body


class Fatal(Exception):
    """The real server is gone after this."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be computed."""

    rid: str
    ids: Ids
    sampling: Sampling
    logprobs: bool
    start: int  # -1: no prompt log-probabilities
    top: int
    flat: bool
    packed: bool


def read_generate(body: Any, shape: ModelShape) -> Asked:
    """Raises Declined, Fatal."""
    if not isinstance(body, dict):
        _decline("the body is no object")
    sampling = body.get("sampling_params") or {}
    unknown = sampling.keys() - _SAMPLING
    if unknown:
        raise Declined({"error": f"unknown field `{min(unknown)}`, expected one of {', '.join(f'`{name}`' for name in sorted(_SAMPLING))}"})
    ids = _ids(body, shape)
    start = body.get("logprob_start_len", -1)
    new = sampling.get("max_new_tokens", 128)
    _check_sampling(sampling, new, shape)
    _check_scoring(body, start, len(ids), shape)
    stops = tuple(sampling.get("stop_token_ids") or ())
    if sampling.get("min_new_tokens", 0) > 0 and any(not 0 <= stop < shape.vocabulary for stop in stops):
        raise Fatal("min_new_tokens with a stop id outside the vocabulary")
    ends = () if sampling.get("ignore_eos") else (*stops, *shape.stops)
    top_k = sampling.get("top_k", -1)
    return Asked(
        rid=str(body.get("rid") or uuid.uuid4().hex),
        ids=ids,
        sampling=Sampling(sampling.get("temperature", 1.0), new, ends, sampling.get("top_p", 1.0), max(0, top_k)),
        logprobs=bool(body.get("return_logprob")),
        start=start,
        top=max(0, body.get("top_logprobs_num", 0)),
        flat=bool(body.get("return_flat_raw_top_logprobs")),
        packed=bool(body.get("return_flat_raw_top_logprobs_b64")),
    )


def _ids(body: dict[str, Any], shape: ModelShape) -> Ids:
    if "text" in body:
        _decline("the stand-in takes input_ids only")
    if "input_ids" not in body:
        _decline("Either text, input_ids or input_embeds should be provided.")
    if body.get("stream"):
        _decline("the stand-in does not stream")
    ids = body["input_ids"]
    if not isinstance(ids, list) or any(type(one) is not int for one in ids):
        message = "1 validation error: {'type': 'value_error', 'loc': ('body', 'input_ids')}"
        raise Declined({"object": "error", "message": message, "type": "Bad Request", "param": None, "code": 400})
    if not ids:
        _decline("input_ids cannot be empty.")
    if min(ids) < 0 or max(ids) >= shape.vocabulary:
        raise Fatal("an id outside the vocabulary")
    if len(ids) >= shape.context:
        _decline(f"The input ({len(ids)} tokens) is longer than the model's context length ({shape.context} tokens).")
    return np.array(ids, np.int32)


def _check_sampling(sampling: dict[str, Any], new: int, shape: ModelShape) -> None:
    if new < 0:
        _decline(f"max_new_tokens must be at least 0, got {new}.")
    temperature = sampling.get("temperature", 1.0)
    if not (temperature >= 0 and math.isfinite(temperature)):
        _decline(f"temperature must be a non-negative finite number, got {temperature}.")
    biased = [int(one) for one in sampling.get("logit_bias") or {} if not 0 <= int(one) < shape.vocabulary]
    if biased:
        _decline(f"logit_bias must has keys in [0, {shape.vocabulary - 1}], got {biased[0]}.")


def _check_scoring(body: dict[str, Any], start: int, length: int, shape: ModelShape) -> None:
    if start <= -2:
        raise Fatal("logprob_start_len")
    if start > length:
        _decline(f"req.logprob_start_len={start} is higher than the number of input tokens len(req.origin_input_ids)={length}.")
    if body.get("top_logprobs_num", 0) > shape.vocabulary:
        raise Fatal("top_logprobs_num")
    candidates = body.get("token_ids_logprob") or []
    if any(not isinstance(one, int) for one in candidates):
        _decline("token_ids_logprob must be a flat list of integers.")
    wrong = [one for one in candidates if not 0 <= one < shape.vocabulary]
    if wrong:
        _decline(f"token_ids_logprob contains out-of-vocabulary token id {wrong[0]}; valid range is [0, {shape.vocabulary}).")


def _decline(message: str) -> NoReturn:
    raise Declined({"error": {"message": message}})
