"""Builds the torch engine from a run's configuration."""

from __future__ import annotations

import asyncio
import math

import torch

from common.config import RunConfig
from common.errors import ConfigError
from common.messages import Version
from common.pulse import Pulse
from producers.engines.torch.batch import Batch
from producers.engines.torch.engine import TorchEngine
from producers.engines.torch.forward import ModelForward
from producers.engines.torch.fused import FusedForward, can_fuse
from producers.engines.torch.loader import Student, load_student
from producers.engines.torch.probe import check_forward
from producers.engines.torch.scheduler import Scheduler
from producers.engines.torch.thread import MathsThread

_EVEN = 32  # elements in an unrolled loop of the widest vectors
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_torch_engine(config: RunConfig, pulse: Pulse, loop: asyncio.AbstractEventLoop | None = None) -> TorchEngine:
    """Loads, probes, starts; on CUDA where there is one. Raises ConfigError for a student it cannot sample from."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    slots = _slots(config)
    student = load_student(config.model.student, dtype=_DTYPES[config.producer.dtype], device=device)
    longest = _longest_sample(config, student)
    forward = FusedForward(student, slots=slots) if can_fuse(student) else ModelForward(student, slots=slots)
    check_forward(student, forward)
    columns = longest if config.run.deterministic else 0
    tops = min(config.producer.record_top_k, student.vocabulary)
    batch = Batch(forward, slots=slots, seed=config.run.seed, device=device, columns=columns, tops=tops)
    scheduler = Scheduler(slots=slots, refill_share=config.producer.refill_share)
    maths = MathsThread(
        model=student.model,
        batch=batch,
        scheduler=scheduler,
        version=Version(0, 0),
        threads=config.service.torch_threads,
        pulse=pulse,
    )
    return TorchEngine(student=student, maths=maths, slots=slots, spare=scheduler.chunk, loop=loop)


def _slots(config: RunConfig) -> int:
    """For bit-equal rows every element-wise kernel must come out even: its tail is computed by other instructions than its body."""
    slots = config.producer.slots
    return math.ceil(slots / _EVEN) * _EVEN if config.run.deterministic else slots


def _longest_sample(config: RunConfig, student: Student) -> int:
    answer = max(config.sampling.max_new_tokens, config.evaluation.max_new_tokens)
    if answer >= student.context:
        raise ConfigError(
            f"answers of up to {answer} tokens leave no room for a prompt in the student's context of {student.context}: "
            "lower sampling.max_new_tokens or evaluation.max_new_tokens"
        )
    return min(config.data.max_prompt_tokens + answer, student.context)
