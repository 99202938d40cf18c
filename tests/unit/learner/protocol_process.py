"""Processes under control, in one event loop: virtual time, no threads, and a gate before every call that leaves a process.

Nothing happens but what the test lets happen: a process runs until all its tasks wait at gates, locks or timers; then the test opens one
gate. Between any two of them the process can be killed; nothing of it gets out afterwards. `fuse` kills it at its n-th write to the disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

from common.errors import Superseded

RUNNING: ContextVar[Process | None] = ContextVar("RUNNING", default=None)
_fsync, _fdatasync, _rename = os.fsync, os.fdatasync, os.replace


class Killed(Exception):
    """The process is no more."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Timers go by `now`; `under_way` counts the calls that a real server has not answered yet."""

    now = 0.0
    under_way = 0

    def time(self) -> float:
        return self.now

    def call_exception_handler(self, context) -> None:
        """What the tasks of a killed process left behind is no news; `Process.failures` tells of the others."""
        error = context.get("exception")
        if error is None or any(not isinstance(leaf, Killed | Superseded) for leaf in _leaves(error)):
            super().call_exception_handler(context)

    async def end(self) -> None:
        """No task is left."""
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
            for task in others:
                _ = task.cancelled() or task.exception()

    async def settle(self) -> None:
        """Until every task waits."""
        while self.under_way or self._ready:
            await asyncio.sleep(0)


@dataclass
class Gate:
    """One call that waits to be let out; `future` gets whether its reply is to be lost."""

    what: str
    future: asyncio.Future[bool]


class Process:
    """One worker or learner."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.loop, self.name = loop, name
        self.alive, self.fuse = True, 0
        self.gates: list[Gate] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def gate(self, what: str) -> bool:
        """Returns when it is opened; True: the reply of the call is to be lost."""
        self.demand_life()
        gate = Gate(what, self.loop.create_future())
        self.gates.append(gate)
        try:
            lost = await gate.future
        finally:
            self.gates.remove(gate)
        self.demand_life()
        return lost

    def demand_life(self) -> None:
        if not self.alive:
            raise Killed(self.name)

    def open(self, index: int, *, lose: bool = False) -> None:
        gate = self.gates[index % len(self.gates)]
        if not gate.future.done():
            gate.future.set_result(lose)

    def burn(self) -> None:
        """A write to the disk; the fuse may end here."""
        self.demand_life()
        self.fuse -= 1
        if self.fuse == 0:
            self.alive = False
        self.demand_life()

    def begin(self, work: Coroutine[None, None, None]) -> None:
        async def running() -> None:
            RUNNING.set(self)
            await work

        self.tasks.append(self.loop.create_task(running(), name=self.name))

    def kill(self) -> None:
        self.alive = False
        for gate in self.gates:
            if not gate.future.done():
                gate.future.set_result(False)
        for task in self.tasks:
            task.cancel()

    @property
    def idle(self) -> bool:
        return all(task.done() for task in self.tasks)

    def failures(self) -> list[BaseException]:
        """What its tasks ended with; the leaves of exception groups."""
        ended = [task for task in self.tasks if task.done() and not task.cancelled()]
        return [leaf for task in ended if (error := task.exception()) for leaf in _leaves(error)]


def _leaves(error: BaseException) -> list[BaseException]:
    return [leaf for one in error.exceptions for leaf in _leaves(one)] if isinstance(error, BaseExceptionGroup) else [error]


class InlineMaths:
    """A MathsThread without a thread."""

    async def run(self, call, *arguments, **named):
        return await inline(call, *arguments, **named)

    def close(self) -> None:
        """Nothing runs."""


async def inline(call, *arguments, **named):
    """asyncio.to_thread without a thread: one gate, then the call."""
    process = RUNNING.get()
    assert process is not None
    known = call.func if isinstance(call, partial) else call
    await process.gate(getattr(known, "__name__", "call"))
    return call(*arguments, **named)


def write_model(*_) -> None:
    """The files that a finished run leaves for people are nobody's business here."""


def _burning(write: Callable[..., None]) -> Callable[..., None]:
    """What is not yet durable need not be made so here: no power fails. But the process may die before each such call."""

    def burn(*arguments, **named) -> None:
        process = RUNNING.get()
        if process is None:
            write(*arguments, **named)
            return
        process.burn()
        if write is _rename:
            write(*arguments, **named)

    return burn


@contextmanager
def controlled(monkeypatch):
    """No threads, no fsync, no model files, in this process."""
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "to_thread", inline)
        patch.setattr("learner.service.MathsThread", InlineMaths)
        patch.setattr("learner.service.export_model", write_model)
        patch.setattr("learner.service.write_tensorboard", write_model)
        patch.setattr(os, "fsync", _burning(_fsync))
        patch.setattr(os, "fdatasync", _burning(_fdatasync))
        patch.setattr(os, "replace", _burning(_rename))
        yield
