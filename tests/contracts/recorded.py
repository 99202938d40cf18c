"""Exchanges recorded from a real SGLang 0.5.23 server: tiny Qwen3, vocabulary 512, context 2048."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.sglang.request import GenerateRequest
from common.sglang.shape import ModelShape

FIXTURES = Path(__file__).parent / "sglang_fixtures"
SHAPE = ModelShape(vocabulary=512, context=2048)


def exchange(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
    return values


def body_of(name: str) -> Any:
    return exchange(name)["request"]["body"]


def reply_of(name: str) -> Any:
    return exchange(name)["response"]["json"]


def request_of(body: dict[str, Any]) -> GenerateRequest:
    """What our client would have had to be asked for, to send the recorded body."""
    sampling = body["sampling_params"]
    return GenerateRequest(
        ids=np.array(body["input_ids"], np.int32),
        max_new_tokens=sampling.get("max_new_tokens", 128),
        temperature=sampling.get("temperature", 1.0),
        top_p=sampling.get("top_p", 1.0),
        top_k=sampling.get("top_k", 0),
        stop_token_ids=tuple(sampling.get("stop_token_ids", ())),
        logprob_start=body.get("logprob_start_len"),
        top=body.get("top_logprobs_num", 0),
    )
