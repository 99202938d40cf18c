"""Encode and decode a scored rollout of 2000 tokens, beside bare msgpack + numpy.frombuffer of the same fields: prints JSON.

`ratio` is ours over bare, from the best of many short, interleaved rounds; the bar is 2.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from common.codec import decode, encode
from common.messages import Completion, Hop, Rollout, Sampling, ScoredRollout, Span, TeacherScore, TeacherShare, Ticket, Version

TOKENS, PROMPT, ROUNDS, CALLS = 2000, 100, 200, 50


def scored_rollout(top_k: int) -> ScoredRollout:
    """A rollout with one score; without top-k ids where `top_k` is 0."""
    rng = np.random.default_rng(0)
    slip = (TeacherShare("teacher", 1.0),)
    prompt = rng.integers(0, 1 << 17, PROMPT, np.int32)
    ticket = Ticket(5, 0, "1234", prompt, Sampling(1.0, TOKENS, (2,)), slip, Version(1, 2), {"source": "bench"})
    response = rng.integers(0, 1 << 17, TOKENS, np.int32)
    completion = Completion(response, rng.standard_normal(TOKENS, np.float32), (Span(1, 2, TOKENS, True),), "stop")
    top_ids = rng.integers(0, 1 << 17, (TOKENS, top_k), np.int32) if top_k else None
    top_logprobs = rng.standard_normal((TOKENS, top_k), np.float32) if top_k else None
    score = TeacherScore("teacher", "0" * 16, rng.standard_normal(TOKENS, np.float32), top_ids, top_logprobs)
    hops = (Hop("producer-0123456789ab", *[1_700_000_000_000] * 3), Hop("scorer-0123456789ab", *[1_700_000_000_000] * 3))
    return ScoredRollout(Rollout(ticket, completion), (score,), hops)


def bare_encode(message: ScoredRollout) -> bytes:
    """The same fields as one msgpack list."""
    t, c, s = message.rollout.ticket, message.rollout.completion, message.scores[0]
    a = t.sampling
    fields: list[Any] = [t.seq, t.attempt, t.prompt_id, t.prompt_ids.tobytes()]
    fields += [[a.temperature, a.max_new_tokens, a.stop_token_ids, a.top_p, a.top_k], t.slip, t.min_version, t.metadata]
    fields += [c.response_ids.tobytes(), c.logprobs.tobytes(), (c.versions, message.hops), c.finish_reason]
    fields += [s.teacher, s.digest, s.clamped, s.logprobs.tobytes()]
    if s.top_ids is not None and s.top_logprobs is not None:
        fields += [s.top_ids.tobytes(), s.top_logprobs.tobytes()]
    packed: bytes = msgpack.packb(fields)
    return packed


def bare_decode(frame: bytes) -> list[Any]:
    """The fields, arrays as views."""
    fields: list[Any] = msgpack.unpackb(frame)
    for at, dtype in ((3, np.int32), (8, np.int32), (9, np.float32), (15, np.float32)):
        fields[at] = np.frombuffer(fields[at], dtype)
    if len(fields) > 16:
        fields[16:] = [
            np.frombuffer(fields[16], np.int32).reshape(TOKENS, -1),
            np.frombuffer(fields[17], np.float32).reshape(TOKENS, -1),
        ]
    return fields


def best_us(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Least microseconds per call of each, taken in turn so that a busy machine is unfair to none."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                call()
            best[name] = min(best[name], (time.perf_counter() - started) / CALLS * 1e6)
    return best


def measure(top_k: int) -> dict[str, float]:
    """One row of the result."""
    message = scored_rollout(top_k)
    frame, bare_frame = encode(message), bare_encode(message)
    us = best_us(
        {
            "encode": lambda: encode(message),
            "decode": lambda: decode(frame),
            "bare_encode": lambda: bare_encode(message),
            "bare_decode": lambda: bare_decode(bare_frame),
            "round_trip": lambda: decode(encode(message)),
            "bare_round_trip": lambda: bare_decode(bare_encode(message)),
        }
    )
    return {"top_k": top_k, "bytes": len(frame)} | us | {"ratio": us["round_trip"] / us["bare_round_trip"]}


def main() -> None:
    """Prints the rows."""
    print(json.dumps({"codec_us": [measure(0), measure(8)]}, indent=1))


if __name__ == "__main__":
    main()
