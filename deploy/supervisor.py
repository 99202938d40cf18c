"""Keeps the roles of a run alive until the learner is done.

Guarantees: a process that dies is started again and its reason is told; after `budget` deaths without any progress of the run in between
the run stops and can be resumed; a process that ends by a user's mistake (exit 2) stops the run at once with its sentence. Whom `specs`
does not name any more is told to drain, whom it names anew is started. When the run stops, every process gets SIGTERM, `drain_s`
and a margin, then SIGKILL: nothing of it is left when `run` returns.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from common.service import EXIT_DONE, EXIT_USER
from deploy.process import Exit
from deploy.roles import RoleSpec

Ending = Literal["finished", "stopped", "failed"]

_POLL_S = 0.1
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
_DRAIN_MARGIN_S = 10.0


class Running(Protocol):
    """A process, as far as it is supervised."""

    def poll(self) -> Exit | None:
        """Its end, once it has ended."""

    def send(self, number: signal.Signals) -> None:
        """Signals it, if it still runs."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the run ended here. `user` = by a mistake that starting again does not mend."""

    how: Ending
    reason: str = ""
    user: bool = False


@dataclass(slots=True)
class _Post:
    """A role's place: whoever fills it now, or when the next one comes."""

    spec: RoleSpec
    process: Running | None
    starts_at: float = 0.0
    leaves_by: float = math.inf  # when it is not wanted any more: until then it may drain


@dataclass(slots=True)
class Supervisor:
    """`specs` says who is wanted now; `spawn(spec, again)` starts a process; `progress` is any number that changes when the run gets on."""

    specs: Callable[[], Sequence[RoleSpec]]
    spawn: Callable[[RoleSpec, bool], Running]
    progress: Callable[[], object]
    say: Callable[[str], None]
    budget: int
    drain_s: float
    cpu_s: dict[str, float] = field(default_factory=dict)
    _seen: object = None
    _deaths: int = 0

    async def run(self, stopping: asyncio.Event) -> Ended:
        """Until the learner is done, `stopping` is set, or the run cannot go on."""
        posts: list[_Post] = []
        try:
            while True:
                self._resize(posts)
                ended = self._look(posts)
                if ended:
                    return ended
                if stopping.is_set():
                    return Ended("stopped")
                await asyncio.sleep(_POLL_S)
        finally:
            await self._end(posts)

    def _resize(self, posts: list[_Post]) -> None:
        """Whoever leaves keeps the name until it is gone."""
        wanted, now = self.specs(), time.monotonic()
        names = {spec.name for spec in wanted}
        for post in posts:
            if post.spec.name not in names and post.leaves_by == math.inf:
                post.leaves_by = now + self.drain_s + _DRAIN_MARGIN_S
                self._signal([post], signal.SIGTERM)
            elif now > post.leaves_by:
                self._signal([post], signal.SIGKILL)
        posts[:] = [post for post in posts if post.process is not None or post.leaves_by == math.inf]
        taken = {post.spec.name for post in posts}
        posts += [_Post(spec, self.spawn(spec, False)) for spec in wanted if spec.name not in taken]

    def _look(self, posts: Sequence[_Post]) -> Ended | None:
        now = time.monotonic()
        for post in posts:
            if post.process is None:
                if post.starts_at <= now < post.leaves_by == math.inf:
                    post.process = self.spawn(post.spec, True)
                continue
            exit_ = post.process.poll()
            if exit_ is not None:
                ended = self._bury(post, exit_, now)
                if ended:
                    return ended
        return None

    def _bury(self, post: _Post, exit_: Exit, now: float) -> Ended | None:
        """A process has ended: what now?"""
        self._count(post, exit_)
        if post.leaves_by < math.inf:
            return None
        if exit_.code == EXIT_DONE and post.spec.role == "learner":
            return Ended("finished")
        if exit_.code == EXIT_USER:
            return Ended("failed", exit_.reason, user=True)
        if (progress := self.progress()) != self._seen:
            self._seen, self._deaths = progress, 0
        self._deaths += 1
        if self._deaths > self.budget:
            reason = f"{post.spec.name} died {exit_.code} ({exit_.reason}): {self._deaths} deaths without progress in between"
            return Ended("failed", reason)
        pause = 0.0 if self._deaths == 1 else min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._deaths)
        post.starts_at = now + pause
        self.say(f"{post.spec.name} ended ({exit_.reason}) and is started again ({self._deaths} of {self.budget} without progress)")
        return None

    def _count(self, post: _Post, exit_: Exit) -> None:
        """The post is empty now; what its process cost is kept."""
        post.process = None
        self.cpu_s[post.spec.role] = self.cpu_s.get(post.spec.role, 0.0) + exit_.cpu_s

    async def _end(self, posts: Sequence[_Post]) -> None:
        """SIGTERM, patience, SIGKILL."""
        patience = self.drain_s + _DRAIN_MARGIN_S
        self._signal(posts, signal.SIGTERM)
        for post in await self._left_after(patience, posts):
            self.say(f"{post.spec.name} did not drain within {patience:g} s and is killed")
        self._signal(posts, signal.SIGKILL)
        await self._left_after(_DRAIN_MARGIN_S, posts)

    async def _left_after(self, seconds: float, posts: Sequence[_Post]) -> list[_Post]:
        """Those that still run when the time is up; returns early when none does."""
        deadline = time.monotonic() + seconds
        while (left := self._left(posts)) and time.monotonic() < deadline:  # noqa: ASYNC110 - reaping is by polling
            await asyncio.sleep(_POLL_S)
        return left

    def _signal(self, posts: Sequence[_Post], number: signal.Signals) -> None:
        for post in posts:
            if post.process is not None:
                post.process.send(number)

    def _left(self, posts: Sequence[_Post]) -> list[_Post]:
        """Those that still run; the CPU seconds of the others are counted."""
        for post in posts:
            exit_ = post.process.poll() if post.process is not None else None
            if exit_ is not None:
                self._count(post, exit_)
        return [post for post in posts if post.process is not None]
