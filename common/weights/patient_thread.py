"""Calls on a file system that may never answer (a stalled network mount): each has a deadline, and none keeps the process from ending.

Guarantees (P7): a call returns, fails, or raises StoreAway after `deadline_s`; one that hangs in the kernel cannot be ended, so no other
begins before it has. Calls that follow one another share a thread, which ends when none has come for a while.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from common.errors import StoreAway

_IDLE_S = 10.0

P = ParamSpec("P")
T = TypeVar("T")
Order = tuple[Callable[[], Any], Future[Any]]


class PatientThread:
    """One call at a time. `place` is named in the error."""

    def __init__(self, place: object, deadline_s: float) -> None:
        self._place = place
        self._deadline_s = deadline_s
        self._last: Future[Any] | None = None  # Any: of whatever kind the last call was
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._lock = threading.Lock()
        self._serving = False

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result. A waiter that is cancelled leaves the call running."""
        try:
            async with asyncio.timeout(self._deadline_s):
                if self._last is not None and not self._last.done():
                    await asyncio.gather(asyncio.wrap_future(self._last), return_exceptions=True)
                return await asyncio.wrap_future(self._begin(lambda: call(*args, **kwargs)))
        except TimeoutError:
            raise StoreAway(
                f"the weight store {self._place} has not answered for {self._deadline_s:g} s: mend it, or the way there; "
                f"weights.deadline_s says how long a call may take"
            ) from None

    def _begin(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._last = future
        future.set_running_or_notify_cancel()
        with self._lock:
            self._orders.put((call, future))
            begin, self._serving = not self._serving, True
        if begin:
            threading.Thread(target=self._serve, name="weight store", daemon=True).start()
        return future

    def _serve(self) -> None:
        while True:
            try:
                _carry_out(*self._orders.get(timeout=_IDLE_S))
            except Empty:
                with self._lock:
                    if self._orders.empty():
                        self._serving = False
                        return


def _carry_out(call: Callable[[], Any], future: Future[Any]) -> None:
    """In a frame of its own: what the call was about is not kept until the next one comes."""
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - comes out where the call is awaited
        future.set_exception(error)
