"""Bytes of messages by encoding real ones, and of a published version by counting the student's tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from common.codec import encode
from common.config import RunConfig
from common.errors import ConfigError
from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, TeacherScore, TeacherShare, Ticket, Version
from deploy.plan.world import Sizes

_LATE = 1000  # a number such as a run has
_LENGTHS = (256, 16384)
_BYTES = {"float32": 4, "bfloat16": 2}


def sizes_of(config: RunConfig, prompt: int) -> Sizes:
    """By the codec, at two lengths; arrays grow evenly with the tokens."""
    teacher = next(iter(config.teachers))
    plain = [len(encode(_scored(config, prompt, length, ""))) for length in _LENGTHS]
    scored = [len(encode(_scored(config, prompt, length, teacher))) for length in _LENGTHS]
    rollout = _line(plain)
    return Sizes(len(encode(_ticket(config, prompt))), rollout, _line([one - other for one, other in zip(scored, plain, strict=True)]))


def _line(sizes: list[int]) -> tuple[float, float]:
    each = (sizes[1] - sizes[0]) / (_LENGTHS[1] - _LENGTHS[0])
    return sizes[0] - each * _LENGTHS[0], each


def _ticket(config: RunConfig, prompt: int) -> Ticket:
    sampling = Sampling(config.sampling.temperature, config.sampling.max_new_tokens, config.sampling.stop_token_ids)
    slip = tuple(TeacherShare(name, 1.0) for name in list(config.teachers)[:1])
    metadata = {"answer": "0000"}
    return Ticket(_LATE, 0, str(_LATE), np.zeros(prompt, np.int32), sampling, slip, Version(1, _LATE), metadata)


def _scored(config: RunConfig, prompt: int, length: int, teacher: str) -> ScoredRollout:
    logp_T = np.zeros(length, np.float32)
    spans = (Span(1, _LATE, length - 1, True), Span(1, _LATE + 1, 1, True))
    rollout = Rollout(_ticket(config, prompt), Completion(np.zeros(length, np.int32), logp_T, spans, "stop"))
    if not teacher:
        return ScoredRollout(rollout)
    width = config.teachers[teacher].top_k
    tops = (np.zeros((length, width), np.int32), np.zeros((length, width), np.float32)) if width else (None, None)
    return ScoredRollout(rollout, (TeacherScore(teacher, "0" * 16, logp_T, *tops),))


def version_bytes(config: RunConfig) -> int:
    """Of one full version in weights.dtype. Raises ConfigError where the student's files are not here."""
    files = sorted(config.model.student.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"model.student = {config.model.student} has no *.safetensors here, so the bytes of a published version cannot be counted: "
            "give --rate weights.bytes=N"
        )
    return _BYTES[config.weights.dtype] * sum(_numbers(file) for file in files)


def _numbers(file: Path) -> int:
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        return sum(int(np.prod(tensor["shape"])) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is no safetensors file that can be read ({error}): complete the download") from None
