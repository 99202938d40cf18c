"""One run under a storm, or undisturbed, and what became of its samples."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chaos_post import ROOT, environment
from chaos_storm import MODULES, Injected, Storm
from chaos_world import Recovery, World
from pyarrow import parquet


@dataclass(frozen=True, slots=True)
class Trial:
    """`lost` and `twice` are None where the run did not finish: nothing can be said then."""

    name: str
    finished: bool
    seconds: float
    audit: str  # what `reflux audit` said; empty where it was not asked
    audited: bool
    pass_at_1: float | None
    samples: int
    lost: int | None
    twice: int | None
    dead: int
    refused: int
    terms: int
    replayed: int
    injected: list[Injected]
    replies_lost: dict[str, int]
    cold: dict[str, float]
    recoveries: list[Recovery]
    strange: list[str]

    @property
    def failures(self) -> list[str]:
        """In words; empty where everything is as promised."""
        wrong = [f"{one.kind}: {one.failure}" for one in self.injected if one.failure]
        wrong += [] if self.finished else [f"the run did not finish in {self.seconds:.0f} s"]
        wrong += [f"audit: {self.audit.strip()}"] if self.finished and not self.audited else []
        wrong += [f"{self.lost} samples lost, {self.twice} applied twice"] if self.lost or self.twice else []
        return [f"{self.name}: {one}" for one in wrong + self.strange]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def undisturbed(directory: Path, settings: Mapping[str, object], limit_s: float) -> Trial:
    return await _trial(directory, settings, limit_s, None)


async def stormy(directory: Path, settings: Mapping[str, object], limit_s: float, storm: Storm) -> Trial:
    return await _trial(directory, settings, limit_s, storm)


async def _trial(directory: Path, settings: Mapping[str, object], limit_s: float, storm: Storm | None) -> Trial:
    began = time.monotonic()
    async with World.begin(directory, settings, MODULES) as world:
        if storm is not None:
            await world.until(lambda: world.step >= 1, limit_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(storm.rage(world), limit_s)
        finished = world.done or await world.until(lambda: False, limit_s - (time.monotonic() - began)) or world.done
        code, said = await asyncio.to_thread(_reflux, world, "audit")
        return await asyncio.to_thread(_judge, world, storm, finished, time.monotonic() - began, (code, said))


def _judge(world: World, storm: Storm | None, finished: bool, seconds: float, audit: tuple[int, str]) -> Trial:
    result = world.result if finished else {"pass_at_1": {"after": None}, "samples": 0, "ledger": {}, "term": 0, "replayed_steps": 0}
    ledger: dict[str, int] = result["ledger"]
    seqs = _seqs(world) if finished else []
    lines = [post.line for post in world.posts.values()]
    return Trial(
        name=world.directory.name,
        finished=finished,
        seconds=round(seconds, 1),
        audit=audit[1],
        audited=audit[0] == 0,
        pass_at_1=result["pass_at_1"]["after"],
        samples=result["samples"],
        lost=ledger["admitted"] - len(set(seqs)) - ledger["live"] - ledger["dead"] if finished else None,
        twice=len(seqs) - len(set(seqs)) if finished else None,
        dead=ledger.get("dead", 0),
        refused=sum(world.refused.values()),
        terms=result["term"],
        replayed=result["replayed_steps"],
        injected=storm.injected if storm else [],
        replies_lost=dict(sum((line.lost for line in lines), Counter())),
        cold=world.cold,
        recoveries=world.recoveries,
        strange=world.strange,
    )


def _reflux(world: World, *arguments: str) -> tuple[int, str]:
    """The command, by way of no proxy: its exit code and what it said."""
    name, *rest = arguments
    _, config, *sets = world.command(world.server.url(world.server.port))
    command = [sys.executable, "-m", "deploy", name, config, *rest, *sets]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, (done.stdout + done.stderr)[-4000:]


def _seqs(world: World) -> list[int]:
    """Of every sample that the surviving line has applied, as often as it did."""
    file = world.directory / "rollouts.parquet"
    code, said = _reflux(world, "export", "--out", str(file))
    if code:
        raise RuntimeError(f"reflux export failed: {said}")
    seqs: list[int] = parquet.read_table(file, columns=["seq"])["seq"].to_pylist()
    return seqs
