"""Refuses, at start-up, an architecture whose modelling code does not do through slots what it does plainly.

Guarantees to everybody downstream that behaviour log-probabilities are the model's own: a model with another cache, another kind of
attention or an ignored mask is a ConfigError here, never a silently different distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import ConfigError
from producers.engines.torch import attention
from producers.engines.torch.forward import Forward
from producers.engines.torch.loader import Student

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
_PROMPTS, _STEPS = (5, 3), 3


def check_forward(student: Student, forward: Forward) -> None:
    """Two prompts of different length, prefilled together and continued, against the eager forward pass."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(student.vocabulary, (min(len(_PROMPTS), forward.cache.slots), _PROMPTS[0] + _STEPS), generator=generator).to(
        student.device
    )
    try:
        with torch.inference_mode():
            worst = max(
                float((ours - plain).abs().max()) for ours, plain in zip(_through_slots(forward, ids), _plainly(student, ids), strict=True)
            )
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError, NotImplementedError) as error:
        raise ConfigError(_sentence(student, str(error).split("\n")[0])) from error
    if not worst <= _TOLERANCE[student.dtype]:
        raise ConfigError(_sentence(student, f"its log-probabilities through the KV cache are off by {worst:.2g}"))


def _sentence(student: Student, why: str) -> str:
    name = type(student.model).__name__
    return f"the torch engine does not support the architecture {name} ({why}): use a Qwen3, Qwen2, Llama or Mistral student"


def _through_slots(forward: Forward, ids_MT: Tensor) -> list[Tensor]:
    """Log-probabilities [M, V] after each prompt and after each of the next tokens."""
    lengths_M = torch.tensor(_PROMPTS, device=ids_MT.device)[: len(ids_MT)]
    rows_M = torch.arange(len(ids_MT), device=ids_MT.device)
    forward.cache.reserve(_PROMPTS[0] + _STEPS)
    logits = [forward.prefill(ids_MT[:, : _PROMPTS[0]], lengths_M, rows_M)]
    logits += [forward.decode(ids_MT[rows_M, lengths_M + step], _PROMPTS[0] + step + 1) for step in range(_STEPS)]
    forward.cache.release(rows_M)
    return [torch.log_softmax(each.float(), -1) for each in logits]


def _plainly(student: Student, ids_MT: Tensor) -> list[Tensor]:
    student.model.set_attn_implementation("eager")
    try:
        logits_MTV = student.model(input_ids=ids_MT, use_cache=False).logits.float()
    finally:
        student.model.set_attn_implementation(attention.NAME)
    logp_MTV = torch.log_softmax(logits_MTV, -1)
    rows_M = torch.arange(len(ids_MT), device=ids_MT.device)
    last_M = torch.tensor(_PROMPTS, device=ids_MT.device)[: len(ids_MT)] - 1
    return [logp_MTV[rows_M, last_M + step] for step in range(_STEPS + 1)]
