"""The one thread in which all of an engine's maths runs. It consumes orders from a queue, waits for nothing else, and produces resolved
futures, at most one call into the event loop per step.

Orders are carried out between two decode steps. An exception ends the thread and fails every request it knows or is sent later.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from common.errors import WeightsError
from common.messages import Version, WeightManifest
from common.pulse import Pulse
from producers.engines.torch.batch import Batch, Finished
from producers.engines.torch.request import Request
from producers.engines.torch.scheduler import Scheduler
from producers.engines.torch.weights import swap_weights

log = logging.getLogger(__name__)

_GATHER_S = 0.01
"""A few decode steps of a small model, one of a large."""


@dataclass(frozen=True, slots=True)
class Join:
    """New requests."""

    requests: list[Request]


@dataclass(frozen=True, slots=True)
class Leave:
    """Nobody waits for this one any more."""

    request: Request


@dataclass(frozen=True, slots=True)
class Swap:
    """Other weights."""

    manifest: WeightManifest
    directory: Path
    future: asyncio.Future[None]


Order = Join | Leave | Swap


class Listener(Protocol):
    """Called on the event loop."""

    def finished(self, answers: Finished) -> None:
        """All that one step completed."""

    def failed(self, error: BaseException) -> None:
        """The thread has ended."""


class MathsThread:
    """`version` may be read from any thread; everything else belongs to this one once it runs."""

    def __init__(self, *, model: Any, batch: Batch, scheduler: Scheduler, version: Version, threads: int, pulse: Pulse) -> None:
        self.version = version
        self._model = model
        self._batch = batch
        self._scheduler = scheduler
        self._threads = threads
        self._pulse = pulse
        self._tell_at = 0.0
        self._fresh = False  # nothing has been sampled with `version` yet
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()

    def start(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> threading.Thread:
        """Runs until `stop`."""
        thread = threading.Thread(target=self._run, args=(loop, listener), name="engine maths", daemon=True)
        thread.start()
        return thread

    def order(self, order: Order) -> None:
        """Will be carried out before the next decode step."""
        self._orders.put(order)

    def stop(self) -> None:
        """What is in flight is dropped."""
        self._orders.put(None)

    def _run(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        try:
            torch.set_num_threads(self._threads)
            with torch.inference_mode():
                finished: Finished = []
                while self._obey(loop):
                    finished += self._advance()
                    if finished and self._is_due():
                        loop.call_soon_threadsafe(listener.finished, finished)
                        finished = []
        except BaseException as error:  # the thread's outermost boundary: it reaches every caller
            log.exception("the engine's maths failed")
            with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(listener.failed, error)

    def _is_due(self) -> bool:
        """Answers that follow one another closely are told together: each call wakes the event loop. None waits where nothing runs."""
        now = time.monotonic()
        if now < self._tell_at and self._runs:
            return False
        self._tell_at = now + _GATHER_S
        return True

    @property
    def _runs(self) -> bool:
        return bool(self._batch.active or len(self._scheduler))

    def _obey(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Carries out what was ordered; with nothing in flight it waits for an order. False: stop."""
        idle = not self._runs
        while idle or not self._orders.empty():
            order = self._orders.get()
            idle = False
            match order:
                case Join(requests):
                    for request in requests:
                        self._scheduler.add(request)
                case Leave(request):
                    if not self._scheduler.drop(request):
                        self._batch.leave(request)
                case Swap():
                    self._swap(order, loop)
                case None:
                    return False
        return True

    def _advance(self) -> Finished:
        """One step; before it, those whose turn it is join."""
        finished: Finished = []
        newcomers = self._scheduler.newcomers(free=self._batch.free, active=self._batch.active)
        if newcomers:
            with self._pulse.cpu("prefill"):
                finished += self._batch.join(newcomers, self.version)
        if self._batch.active:
            with self._pulse.cpu("decode"):
                finished += self._batch.step()
                if finished and not len(self._scheduler):
                    self._batch.compact()
            if self._fresh:
                self._tell_first_token()
        return finished

    def _tell_first_token(self) -> None:
        """With the learner's metrics.jsonl this gives the time from a step to its first token."""
        self._fresh = False
        log.info("samples with new weights", extra={"term": self.version.term, "step": self.version.step, "at": f"{time.time():.3f}"})

    def _swap(self, swap: Swap, loop: asyncio.AbstractEventLoop) -> None:
        failure: WeightsError | None = None
        try:
            with self._pulse.cpu("weights"):
                swap_weights(self._model, swap.manifest, swap.directory)
        except WeightsError as error:
            failure = error
        else:
            self.version, self._fresh = swap.manifest.version, True
            self._batch.swapped(self.version)
        loop.call_soon_threadsafe(_settle, swap.future, failure)


def _settle(future: asyncio.Future[None], failure: WeightsError | None) -> None:
    if future.cancelled():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
