"""The Engine that computes in this process. The event loop only passes orders on and resolves futures; the maths runs in one thread.

Calls made in one turn of the event loop reach the maths thread together, so that a burst of tickets is prefilled as one batch.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from common.messages import Completion, Ticket, Version, WeightManifest
from producers.engines.torch.batch import Finished
from producers.engines.torch.loader import Student
from producers.engines.torch.request import Request, check_fits
from producers.engines.torch.thread import Join, Leave, MathsThread, Swap

log = logging.getLogger(__name__)


class TorchEngine:
    """Answers on one event loop: the running one, unless it is told which."""

    def __init__(
        self, *, student: Student, maths: MathsThread, slots: int, spare: int, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self.slots = slots
        self._spare = spare  # tickets worth holding ready for the next refill
        self._student = student
        self._maths = maths
        self._pending: dict[asyncio.Future[Completion], Request] = {}
        self._swaps: set[asyncio.Future[None]] = set()
        self._arrivals: list[Request] = []
        self._failure: BaseException | None = None
        self._loop = loop or asyncio.get_running_loop()
        self._thread = maths.start(self._loop, self)

    @property
    def version(self) -> Version:
        """See Engine."""
        return self._maths.version

    @property
    def wanted(self) -> int:
        """All slots and one refill beyond them, less what is here already."""
        return self.slots + self._spare - len(self._pending)

    async def generate(self, ticket: Ticket) -> Completion:
        """See Engine."""
        check_fits(ticket, self._student)
        if self._failure is not None:
            raise RuntimeError("the engine's maths has stopped") from self._failure
        stops = tuple(sorted({*self._student.stops, *ticket.sampling.stop_token_ids}))
        future: asyncio.Future[Completion] = self._loop.create_future()
        request = self._pending[future] = Request(ticket, stops, future)
        if not self._arrivals:
            self._loop.call_soon(self._pass_on)
        self._arrivals.append(request)
        try:
            return await future
        except asyncio.CancelledError:
            if self._pending.pop(future, None) is not None:
                self._loop.call_soon(self._maths.order, Leave(request))  # after the Join that may still be under way
            raise

    async def update_weights(self, manifest: WeightManifest, directory: Path) -> None:
        """See Engine."""
        if self._failure is not None:
            raise RuntimeError("the engine's maths has stopped") from self._failure
        future: asyncio.Future[None] = self._loop.create_future()
        self._swaps.add(future)
        future.add_done_callback(self._swaps.discard)
        self._maths.order(Swap(manifest, directory, future))
        await future

    async def aclose(self) -> None:
        """See Engine."""
        self._maths.stop()
        for future in self._futures():
            future.cancel()
        await asyncio.to_thread(self._thread.join)

    def finished(self, answers: Finished) -> None:
        """From the maths thread."""
        for request, completion in answers:
            if self._pending.pop(request.future, None) is not None and not request.future.done():
                request.future.set_result(completion)

    def failed(self, error: BaseException) -> None:
        """From the maths thread, as its last word."""
        self._failure = error
        for future in self._futures():
            if not future.done():
                future.set_exception(error)
        self._pending.clear()

    def _futures(self) -> list[asyncio.Future[Any]]:
        """All that somebody waits for, of either kind."""
        return [*self._pending, *self._swaps]

    def _pass_on(self) -> None:
        arrivals, self._arrivals = self._arrivals, []
        self._maths.order(Join(arrivals))
