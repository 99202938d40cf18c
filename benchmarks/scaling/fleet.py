"""The scorers: real processes, started with the command of a run, each with a teacher's server of its own."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.bus.base import SCORED, Bus, rollouts
from common.bus.redis_client import RedisClient
from common.config import RunConfig
from common.errors import BusError
from common.pulse import Report
from deploy.process import Process
from deploy.roles import RoleSpec, environment

_LOOK_S = 0.02
_DEADLINE_S = 120.0
_READY = re.compile(r"^(\S+ \S+) .*is ready", re.MULTILINE)


@dataclass(slots=True)
class Scorer:
    """One of them. Times are unix seconds."""

    port: int
    process: Process
    log: Path
    started: float
    name: str = ""
    up: float = 0.0  # from here on it leases


@dataclass(frozen=True, slots=True)
class Departure:
    """What SIGTERM brought about, in seconds."""

    given_back: float  # until it holds nothing but what its teacher had begun
    empty: float  # until it holds nothing
    ended: float


class Fleet:
    """Grows and shrinks."""

    def __init__(self, *, config: RunConfig, file: Path, ports: list[int], bus: Bus, client: RedisClient) -> None:
        self._config = config
        self._file = file
        self._ports = ports
        self._bus = bus
        self._client = client
        self._topic = rollouts(next(iter(config.teachers)))
        self._key = f"reflux:{{{config.run.name}}}:{self._topic}"
        self.members: list[Scorer] = []

    async def reports(self) -> dict[str, Report]:
        """Of the scorers, by name."""
        found = {name: Report.decode(raw) for name, raw in (await self._bus.reports()).items()}
        return {name: report for name, report in found.items() if report.role == "scorer"}

    async def grow(self, count: int) -> list[Scorer]:
        """Starts as many as are missing; returns them when all are up."""
        new = [self._start() for _ in range(count - len(self.members))]
        self.members += new
        await self._until(lambda reports: all(_is_up(one, reports) for one in new))
        return new

    def _start(self) -> Scorer:
        port = next(port for port in self._ports if port not in {one.port for one in self.members})
        self._ports = [*(other for other in self._ports if other != port), port]
        spec = RoleSpec("scorer", self._ports.index(port), 0, ("--teacher", next(iter(self._config.teachers))))
        urls = json.dumps([f"http://127.0.0.1:{port}"])
        command = spec.command(self._file, "--set", f"teachers.{next(iter(self._config.teachers))}.urls={urls}")
        log = self._config.directory / "logs" / f"scorer-{port}.log"
        log.unlink(missing_ok=True)
        return Scorer(port, Process.start(command, log=log, environment=environment(self._config), nice=0), log, time.time())

    async def shrink(self, count: int) -> list[Departure]:
        """SIGTERM for the youngest; returns when they are gone."""
        leaving, self.members = self.members[count:], self.members[:count]
        return await asyncio.gather(*(self._end(one) for one in leaving))

    async def _end(self, one: Scorer) -> Departure:
        begun, marks = time.monotonic(), dict[str, float]()
        one.process.send(signal.SIGTERM)
        most = self._config.scorer.lease_tokens // 544
        while one.process.poll() is None:
            held, now = (await self.held()).get(one.name, 0), time.monotonic() - begun
            if held <= most:
                marks.setdefault("given back", now)
            if not held:
                marks.setdefault("empty", now)
            assert now < _DEADLINE_S, f"{one.name} does not end"
            await asyncio.sleep(_LOOK_S)
        now = time.monotonic() - begun
        return Departure(marks.get("given back", now), marks.get("empty", now), now)

    async def held(self) -> Mapping[str, int]:
        """Scorer -> entries that it leases."""
        rows = await self._client.command("XINFO", "CONSUMERS", self._key, "workers")
        consumers = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
        return {consumer[b"name"].decode(): int(consumer[b"pending"]) for consumer in consumers}

    async def waiting(self) -> tuple[int, int]:
        """Rollouts that no scorer holds, and scored ones that the learner does not."""
        state = await self._bus.state()
        waiting = [state.backlog.get(topic, 0) - state.leased.get(topic, 0) for topic in (self._topic, SCORED)]
        return waiting[0], waiting[1]

    async def _until(self, holds: Callable[[Mapping[str, Report]], bool]) -> None:
        limit = time.monotonic() + _DEADLINE_S
        while not holds(await self.reports()):
            assert time.monotonic() < limit, "the new scorers do not come up: see their logs"
            for one in self.members:
                assert one.process.poll() is None, one.process.last_line()
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        """What is left, without manners."""
        for one in self.members:
            with suppress(ProcessLookupError, BusError):
                one.process.send(signal.SIGKILL)


def _is_up(one: Scorer, reports: Mapping[str, Report]) -> bool:
    """As its own log has it: reports come too rarely."""
    mine = next((report for report in reports.values() if report.pid == one.process.pid), None)
    ready = _READY.findall(one.log.read_text())
    if mine is None or not ready:
        return False
    one.name = mine.name
    one.up = datetime.strptime(ready[-1], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
    return True
