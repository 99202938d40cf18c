"""The JSON of a /generate reply, key by key as a real 0.5.23 wrote it, its quirks included."""

from __future__ import annotations

import base64
from typing import Any  # JSON

import numpy as np

from deploy.sglang_standin.asked import Asked
from scorers.teachers.verdict import RawScores

_LOWEST = float(np.finfo(np.float32).min)  # where the real server's softmax underflows


def reply_of(asked: Asked, meta: dict[str, Any], ids: list[int], logprobs: list[float], finish: dict[str, Any]) -> dict[str, Any]:
    """Without prompt log-probabilities."""
    shown: dict[str, Any] = {"id": asked.rid, "finish_reason": finish, "prompt_tokens": len(asked.ids), **meta}
    if asked.logprobs:
        pairs = [[value, token, None] for value, token in zip(logprobs, ids, strict=True)]
        shown |= {"input_token_logprobs": [], "output_token_logprobs": pairs, "output_token_logprobs_length": len(pairs)}
    return {"text": "", "output_ids": ids, "meta_info": shown | {"completion_tokens": len(ids), "reasoning_tokens": 0, "dp_rank": None}}


def prompt_part(asked: Asked, raw: RawScores | None, vocabulary: int) -> dict[str, Any]:
    """`input_…` of meta_info; `raw` is None where nothing lies behind the first asked position."""
    echoed = [int(one) if one < vocabulary - 1 else 0 for one in asked.ids[asked.start :]]  # the real one's clip is off by one
    values = [] if raw is None else np.maximum(raw.logprobs, np.float32(_LOWEST)).tolist()
    entries = [[value, token, None] for value, token in zip([None, *values], echoed, strict=False)] if echoed else []
    part: dict[str, Any] = {"input_token_logprobs": entries}
    if not asked.top:
        return part
    if raw is None or raw.top_ids is None or raw.top_logprobs is None:
        return part | {"input_top_logprobs": [None] if entries else []}
    if asked.flat:
        return part | _flat(asked, raw.top_ids, raw.top_logprobs)
    rows = zip(raw.top_logprobs.tolist(), raw.top_ids.tolist(), strict=True)
    nested = [[[value, token, None] for value, token in zip(*row, strict=True)] for row in rows]
    return part | {"input_top_logprobs": [None, *nested]}


def _flat(asked: Asked, ids: np.ndarray, tops: np.ndarray) -> dict[str, Any]:
    part: dict[str, Any] = {"input_top_logprobs_shape": list(ids.shape), "input_top_logprobs_null_prefix": 1}
    for name, values, kind in (("val", tops, "float32"), ("idx", ids, "int32")):
        key = f"input_top_logprobs_{name}_flat"
        if asked.packed:
            packed = base64.b64encode(values.astype(np.dtype(kind).newbyteorder("<")).tobytes()).decode()
            part |= {f"{key}_b64": packed, f"{key}_b64_dtype": kind}
        else:
            part[key] = values.ravel().tolist()
    return part
