"""The one thread in which the model lives, and the seam to the trainer.

Guarantee: everything that touches the model or its optimizer runs here, one call after the other, off the event loop, so that renewals,
heartbeats and publications go on while a step computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import torch

from common.messages import StepRecord
from learner.training import StepStats, TrainingSample

P = ParamSpec("P")
T = TypeVar("T")


class Trainer(Protocol):
    """The model with its optimizer, on all ranks. `record` is what `samples` were made from: other ranks make them again."""

    def step(self, record: StepRecord, samples: Sequence[TrainingSample], lr: float) -> StepStats:
        """One optimizer step on the global batch."""

    def export(self) -> Mapping[str, torch.Tensor]:
        """A copy of the weights under their Hugging Face names, on the CPU, in weights.dtype."""

    def save(self, directory: Path) -> None:
        """Model, optimizer, random states into an existing empty directory."""

    def begin_save(self, directory: Path) -> Callable[[], None]:
        """Copies what `save` writes; the call that is returned ends when it is written, in any thread, while other steps are trained."""

    def load(self, directory: Path) -> None:
        """What `save` wrote."""

    def close(self) -> None:
        """Ends the other ranks."""


class MathsThread:
    """Runs calls in order, off the event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="maths")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result. A cancelled waiter leaves the call running: the next one comes after it."""
        return await asyncio.wrap_future(self._executor.submit(call, *args, **kwargs))

    def close(self) -> None:
        """Ends the thread; calls not yet begun are dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)
