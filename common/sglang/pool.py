"""The servers of one role. A request goes to the least loaded of those in rotation, within its budget of response tokens.

Guarantees: what would kill a server is refused here. A request that a server fell silent over is tried once more, alone on its server
(another one, where there is one), then Rejected with both reasons. A server that fails leaves rotation with its reason, is asked for
/model_info until it answers, made ready again by `prepare`, and comes back. Nothing waits for ever: where no server is in rotation for
`unreachable_s`, ServersUnreachable.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any  # JSON

from asyncio_throttle import Throttler

from common.config.sections import ServersSection
from common.errors import Rejected, ServersUnreachable
from common.sglang.budget import Budget
from common.sglang.keys import Keys
from common.sglang.request import GenerateRequest
from common.sglang.server import Busy, CallFailed, Lost, ModelInfo, NotSent, Refused, Server, Unanswered
from common.sglang.shape import ModelShape

log = logging.getLogger(__name__)

PROVED = "0.5.23"  # the version whose replies the contract tests replay
_LOOK_S = 0.5  # between two looks of a waiting request at the servers that are out of rotation
_LONGEST_PAUSE_S = 30.0

Prepare = Callable[[Server, ModelInfo], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a pool."""

    in_flight_tokens: int  # response tokens on one server
    requests_per_s: int  # to all servers; 0 = as many as come
    deadline_s: float  # of one request
    unreachable_s: float  # without any server


def limits_of(section: ServersSection) -> Limits:
    """As the configuration says."""
    return Limits(section.in_flight_tokens, section.requests_per_s, section.deadline_s, section.unreachable_s)


async def _as_it_is(_server: Server, _info: ModelInfo) -> None:
    """For servers that need nothing."""


class ServerPool:
    """`who` stands before every reason. `prepare` makes a server ready that has just answered; it raises CallFailed where it cannot."""

    def __init__(
        self, *, who: str, urls: Sequence[str], keys: Keys, limits: Limits, shape: ModelShape, prepare: Prepare = _as_it_is
    ) -> None:
        self.servers = [Server(url, keys=keys, budget=Budget(limits.in_flight_tokens)) for url in urls]
        self._who = who
        self._limits = limits
        self._shape = shape
        self._prepare = prepare
        self._throttle = Throttler(rate_limit=limits.requests_per_s, period=1.0) if limits.requests_per_s else nullcontext()
        self._turns: deque[asyncio.Future[None]] = deque()
        self._one_alone = asyncio.Lock()

    async def ask(self, request: GenerateRequest) -> tuple[Server, Any]:
        """The server and its JSON reply. Raises Rejected, ServersUnreachable, ConfigError."""
        reason = request.refusal(self._shape)
        if reason is not None:
            raise Rejected(reason)
        try:
            return await self._try(request, self._among_others)
        except Unanswered as error:
            first = error
        log.warning("asks again, alone", extra={"who": self._who, "reason": str(first)})
        async with self._one_alone:
            try:
                return await self._try(request, lambda tokens: self._alone(tokens, first.url))
            except Unanswered as error:
                raise Rejected(f"{self._who}: {first}; then, asked alone, {error}") from None

    def take_out(self, server: Server, reason: str) -> None:
        """The server is asked nothing until it has answered /model_info and is prepared again."""
        if server.up or reason != server.reason:
            log.warning(
                "server leaves rotation" if server.up else "server stays out of rotation",
                extra={"who": self._who, "server": server.url, "reason": reason},
            )
        server.up, server.reason = False, reason
        server.failures += 1
        pause = min(_LONGEST_PAUSE_S, _LOOK_S * 2 ** min(server.failures - 1, 10))
        server.ask_again_at = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311  # jitter

    async def prepare_again(self) -> str:
        """Every server in rotation. The reasons of those that leave it because they are not what they were; empty: none."""
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._again(s), name=f"prepare {s.url} again") for s in self.servers if s.up]
        return "; ".join(filter(None, (task.result() for task in asked)))

    @asynccontextmanager
    async def reserved(self, server: Server) -> AsyncIterator[None]:
        """Nothing new is sent to it meanwhile."""
        server.reserved += 1
        try:
            yield
        finally:
            server.reserved -= 1
            self._next()

    async def look(self) -> None:
        """Brings back what is due and answers."""
        now = time.monotonic()
        due = [s for s in self.servers if not s.up and s.ask_again_at <= now and not s.changing.locked()]
        if due:
            async with asyncio.TaskGroup() as tasks:
                for server in due:
                    tasks.create_task(self._readmit(server), name=f"look at {server.url}")
            self._next()

    async def aclose(self) -> None:
        """Calls under way are broken off."""
        for server in self.servers:
            await server.aclose()

    async def _readmit(self, server: Server) -> None:
        async with server.changing:
            if server.up or server.ask_again_at > time.monotonic():  # somebody else has just asked it
                return
            try:
                info = await server.info()
                await self._prepare(server, info)
            except CallFailed as error:
                self.take_out(server, str(error))
                return
            server.up, server.reason = True, ""
        software = await server.software()
        facts = {"who": self._who, "server": server.url, "model": info.model_path, "sglang": software or "not told"}
        log.info("server joins rotation", extra=facts)
        if software != PROVED:
            log.warning("this version of SGLang is not tested", extra={**facts, "tested": PROVED})

    async def _again(self, server: Server) -> str:
        async with server.changing:
            try:
                await self._prepare(server, await server.info())
            except Busy:
                return ""
            except CallFailed as error:
                self.take_out(server, str(error))
                return str(error) if isinstance(error, Lost) else ""
        return ""

    async def _try(self, request: GenerateRequest, seat: Callable[[int], AbstractAsyncContextManager[Server]]) -> tuple[Server, Any]:
        """Until a server has dealt with it, or fallen silent."""
        pause, busy_since = 0.05, 0.0
        while True:
            try:
                async with seat(request.tokens) as server:
                    return server, await self._send(server, request)
            except Busy as error:
                busy_since = busy_since or time.monotonic()
                if time.monotonic() - busy_since > self._limits.unreachable_s:
                    raise ServersUnreachable(f"{self._who}: {error} since {self._limits.unreachable_s:g} s: add servers") from None
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
            pause = min(2.0, pause * 2)

    async def _send(self, server: Server, request: GenerateRequest) -> Any:
        deadline_s = self._limits.deadline_s
        async with self._throttle:
            begun = time.monotonic()
            try:
                body, most = request.body(uuid.uuid4().hex), request.most_reply_bytes
                reply = await server.call("POST", "/generate", body, deadline_s=deadline_s, most_bytes=most)
            except NotSent as error:
                self.take_out(server, str(error))
                raise Busy(str(error)) from None
            except Busy:
                server.budget.congested(time.monotonic())
                raise
            except Unanswered as error:
                server.budget.congested(time.monotonic())
                self.take_out(server, str(error))
                raise
            except (Refused, Lost) as error:
                raise Rejected(f"{self._who}: {error}") from None
        server.failures = 0
        now = time.monotonic()
        if now - begun > deadline_s / 2:
            server.budget.congested(now)
        else:
            server.budget.answered(request.tokens)
        return reply

    @asynccontextmanager
    async def _among_others(self, tokens: int) -> AsyncIterator[Server]:
        server = await self._join(tokens)
        try:
            yield server
        finally:
            server.leave(tokens)
            self._next()

    @asynccontextmanager
    async def _alone(self, tokens: int, avoid: str) -> AsyncIterator[Server]:
        """With a server to itself, another than `avoid` where one is in rotation."""
        server = await self._any_up(avoid)
        async with self.reserved(server):
            await server.quiet.wait()
            server.enter(tokens)
            try:
                yield server
            finally:
                server.leave(tokens)

    async def _join(self, tokens: int) -> Server:
        """About in the order of arrival."""
        down_since, queued = 0.0, False
        while True:
            await self.look()
            free = [s for s in self.servers if s.up and not s.reserved and s.budget.fits(s.in_flight, tokens)]
            if free and (queued or not self._turns):
                server = min(free, key=lambda s: s.in_flight)
                server.enter(tokens)
                self._next()
                return server
            down_since = self._check_reachable(down_since)
            await self._turn(first=queued)
            queued = True

    async def _any_up(self, avoid: str) -> Server:
        down_since = 0.0
        while True:
            await self.look()
            up = [s for s in self.servers if s.up and not s.reserved]
            if up:
                return min(up, key=lambda s: (s.url == avoid, s.in_flight))
            down_since = self._check_reachable(down_since)
            await asyncio.sleep(_LOOK_S / 5)

    def _check_reachable(self, down_since: float) -> float:
        """Since when no server has been in rotation; 0: one is. One that is being asked or changed may yet come back."""
        if any(server.up for server in self.servers):
            return 0.0
        now, hope = time.monotonic(), any(server.changing.locked() for server in self.servers)
        if down_since and not hope and now - down_since > self._limits.unreachable_s:
            reasons = "; ".join(server.reason for server in self.servers)
            raise ServersUnreachable(f"{self._who}: no server is in rotation since {self._limits.unreachable_s:g} s ({reasons}): start one")
        return down_since or now

    async def _turn(self, *, first: bool) -> None:
        """Until something has changed, or a moment has passed."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._turns.appendleft if first else self._turns.append)(turn)
        try:
            await asyncio.wait((turn,), timeout=_LOOK_S)
        finally:
            if turn in self._turns:
                self._turns.remove(turn)

    def _next(self) -> None:
        """The one that has waited longest looks again."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return
