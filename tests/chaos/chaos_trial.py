"""One run under a storm, or undisturbed, and what became of its samples."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos_post import ROOT, environment
from chaos_storm import MODULES, Injected, Storm
from chaos_world import Recovery, World
from pyarrow import parquet


@dataclass(frozen=True, slots=True)
class Samples:
    """What became of them. `lost` and `twice` are None where the run did not finish: nothing can be said then."""

    finished: bool
    audited: bool
    audit: str  # what `reflux audit` said
    applied: int = 0
    lost: int | None = None
    twice: int | None = None
    dead: int = 0
    pass_at_1: float | None = None
    terms: int = 0
    replayed: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """`strange`: ends of processes, or silences, that no fault explains."""

    name: str
    seconds: float
    samples: Samples
    injected: list[Injected] = field(default_factory=list)
    tried: Mapping[str, int] = field(default_factory=dict)  # kind -> how often an occasion for it was looked for
    refused: int = 0
    replies_lost: Mapping[str, int] = field(default_factory=dict)
    cold: Mapping[str, float] = field(default_factory=dict)
    recoveries: Sequence[Recovery] = ()
    strange: Sequence[str] = ()

    @property
    def failures(self) -> list[str]:
        """In words; empty where everything is as promised."""
        end, wrong = self.samples, [f"{one.kind}: {one.failure}" for one in self.injected if one.failure]
        wrong += [] if end.finished else [f"the run did not finish in {self.seconds:.0f} s"]
        wrong += [f"audit: {end.audit.strip()}"] if end.finished and not end.audited else []
        wrong += [f"{end.lost} samples lost, {end.twice} applied twice"] if end.lost or end.twice else []
        return [f"{self.name}: {one}" for one in [*wrong, *self.strange]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def undisturbed(directory: Path, settings: Mapping[str, object], limit_s: float) -> Trial:
    return await _trial(directory, settings, limit_s, None)


async def stormy(directory: Path, settings: Mapping[str, object], limit_s: float, storm: Storm) -> Trial:
    return await _trial(directory, settings, limit_s, storm)


async def _trial(directory: Path, settings: Mapping[str, object], limit_s: float, storm: Storm | None) -> Trial:
    began, deadline = time.monotonic(), time.monotonic() + limit_s
    async with World.begin(directory, settings, MODULES) as world:
        if storm is not None:
            await world.until(lambda: world.step >= 1, limit_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline - time.monotonic()):
                    await storm.rage(world)
        await world.until(lambda: False, deadline - time.monotonic())
        lines = [post.line for post in world.posts.values()]
        return Trial(
            name=directory.name,
            seconds=round(time.monotonic() - began, 1),
            samples=await asyncio.to_thread(account, world.run, world.command(world.server.url(world.server.port))),
            injected=storm.injected if storm else [],
            tried=dict(storm.tried) if storm else {},
            refused=sum(world.refused.values()),
            replies_lost=dict(sum((line.lost for line in lines), Counter())),
            cold=world.cold,
            recoveries=world.recoveries,
            strange=world.strange,
        )


def account(run: Path, command: Sequence[str]) -> Samples:
    """Asks `reflux audit`, and counts for itself how often each sample was applied. `command`: configuration and settings."""
    code, said = reflux("audit", *command)
    if not (run / "result.json").exists():
        return Samples(finished=False, audited=code == 0, audit=said)
    result = json.loads((run / "result.json").read_text())
    ledger, seqs = result["ledger"], _seqs(run.parent / "rollouts.parquet", command)
    return Samples(
        finished=True,
        audited=code == 0,
        audit=said,
        applied=result["samples"],
        lost=ledger["admitted"] - len(set(seqs)) - ledger["live"] - ledger["dead"],
        twice=len(seqs) - len(set(seqs)),
        dead=ledger["dead"],
        pass_at_1=result["pass_at_1"]["after"],
        terms=result["term"],
        replayed=result["replayed_steps"],
    )


def reflux(name: str, *arguments: str) -> tuple[int, str]:
    """The command's exit code and what it said. `arguments`: --config FILE and the settings."""
    _, config, *rest = arguments
    command = [sys.executable, "-m", "deploy", name, config, *rest]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, (done.stdout + done.stderr)[-4000:]


def _seqs(file: Path, command: Sequence[str]) -> list[int]:
    """Of every sample that the surviving line has applied, as often as it did."""
    code, said = reflux("export", *command, "--out", str(file))
    if code:
        raise RuntimeError(f"reflux export failed: {said}")
    seqs: list[int] = parquet.read_table(file, columns=["seq"])["seq"].to_pylist()
    return seqs
