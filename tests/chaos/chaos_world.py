"""A run whose roles are kept alive while faults are injected: one server, one line per role, and an eye on everybody's reports."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_line import Line
from chaos_post import ROOT, Life, Post
from chaos_server import Server
from redis.exceptions import RedisError

CONFIG = ROOT / "examples" / "arithmetic" / "run.toml"
EXIT_DONE, EXIT_FAILED, EXIT_REFUSED = 0, 1, 2
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long a role's place was not filled by a ready process, `because` of what."""

    role: str
    because: str
    seconds: float


@dataclass(slots=True)
class World:
    """`posts` by name; `step` is the highest on record."""

    directory: Path
    settings: Mapping[str, object]
    server: Server
    posts: dict[str, Post] = field(default_factory=dict)
    step: int = 0
    done: bool = False
    cold: dict[str, float] = field(default_factory=dict)  # role -> its cold start in this run
    recoveries: list[Recovery] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)  # worker's name -> hand-offs refused
    strange: list[str] = field(default_factory=list)  # ends that no fault explains
    _reports: dict[int, dict[str, Any]] = field(default_factory=dict)  # by process

    @classmethod
    @asynccontextmanager
    async def begin(cls, directory: Path, settings: Mapping[str, object], names: Mapping[str, str]) -> AsyncIterator[World]:
        """`names`: a post's name -> its module. Nothing is left running afterwards."""
        directory.mkdir(parents=True)  # noqa: ASYNC240 - returns at once
        world = cls(directory, settings, Server(directory / "server"))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(world.server.close)
            stack.callback(world._kill_all)
            await world.server.start()
            for name, module in names.items():
                line = await stack.enter_async_context(Line.to(world.server.port))
                world.posts[name] = Post(name, module, line, directory, world.command(world.server.url(line.port)))
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(world._keep(), name="keep"), tasks.create_task(world._watch(), name="watch")]
                for post in world.posts.values():
                    post.begin()
                yield world
                for task in background:
                    task.cancel()

    def command(self, url: str) -> list[str]:
        """The configuration, with the server behind `url`."""
        settings = {**self.settings, "run.dir": self.directory / "runs", "bus.url": url}
        return ["--config", str(CONFIG), *(f"--set={key}={value}" for key, value in settings.items())]

    @property
    def run(self) -> Path:
        return self.directory / "runs" / "arithmetic"

    @property
    def result(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.run / "result.json").read_text())
        return values

    @property
    def lease_s(self) -> float:
        return float(str(self.settings["bus.lease_s"]))

    @property
    def learner(self) -> Post:
        return self.posts["learner"]

    async def until(self, condition: Callable[[], object], timeout: float) -> bool:
        """False where it did not come true in time; the run's end ends the waiting too."""
        deadline = time.monotonic() + timeout
        while not (reached := bool(condition())) and not self.done and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return reached

    def disturb(self) -> None:
        """The server's trouble is everybody's: what comes back meanwhile takes longer for it."""
        for post in self.posts.values():
            post.life.undisturbed = post.life.undisturbed and bool(post.life.ready)

    # ---- who is dead, and who is ready ---------------------------------------------------------------------------------------
    async def _keep(self) -> None:
        while not self.done:
            for post in self.posts.values():
                if not post.life.alive:
                    self._mourn(post)
            await asyncio.sleep(0.05)

    def _mourn(self, post: Post) -> None:
        life, code = post.life, post.life.process.returncode
        if code == EXIT_DONE and post is self.learner:
            self.done = True
            return
        if not life.killed:
            self.strange.append(f"{post.name} ended by itself ({code}) at step {self.step}: {life.last_line}")
        again = ("--take-over",) if post is self.learner else ()
        post.begin(*again, because="killed" if life.killed else "ended by itself", since=time.monotonic())

    async def _watch(self) -> None:
        while True:
            with suppress(RedisError, OSError):
                await self._read_reports()
            self.step = max(self.step, last_step(self.run / "metrics.jsonl"))
            for post in self.posts.values():
                self._see(post, post.life)
            await asyncio.sleep(_LOOK_S)

    async def _read_reports(self) -> None:
        eye, root = self.server.eye, "reflux:{arithmetic}:"
        for name in await eye.smembers(f"{root}workers"):
            raw = await eye.get(f"{root}report:{name.decode()}")
            if raw is not None:
                report = json.loads(raw)
                self._reports[report["pid"]] = report
                refused = int(report["counters"].get("refused", 0))
                self.refused[report["name"]] = max(self.refused[report["name"]], refused)

    def _see(self, post: Post, life: Life) -> None:
        if life.ready or not self.is_ready(life):
            return
        life.ready = time.monotonic()
        took = life.ready - (life.dead_since or life.born)
        if len(post.lives) == 1:
            self.cold[post.role] = max(self.cold.get(post.role, 0.0), took)
        elif life.undisturbed:
            self.recoveries.append(Recovery(post.role, life.because, took))

    def is_ready(self, life: Life) -> bool:
        """Leases work; a learner has also published."""
        report = self._reports.get(life.process.pid)
        if report is None:
            return False
        if report["role"] == "learner":
            return "published" in report["gauges"]
        state: str = report["state"]
        return state != "starting" and not state.startswith("loads")

    def _kill_all(self) -> None:
        for post in self.posts.values():
            for life in post.started:
                if life.alive:
                    life.process.kill()
                    life.process.wait()


def last_step(file: Path) -> int:
    """Of metrics.jsonl: its last whole line of a step."""
    if not file.exists():
        return 0
    with file.open("rb") as lines:
        lines.seek(max(0, file.stat().st_size - 8192))
        tail = lines.read().splitlines()
    for text in reversed(tail):
        try:
            return int(json.loads(text)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
