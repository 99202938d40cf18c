"""`reflux run` itself under fire: whoever it keeps alive is killed in bursts that its restart budget allows, while the run gets on.

No fault may be hidden (each death is told) and no budget may end a run that makes progress.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
from chaos_post import ROOT, environment
from chaos_storm import Injected
from chaos_trial import Trial, account
from chaos_world import CONFIG, last_step

VICTIMS = ("learner", "producers", "scorers", "server")
_MOST_IN_A_BURST = 3
_PATIENCE_S = 120.0
_NOTICED_S = 5.0


@dataclass(slots=True)
class Supervised:
    """A `reflux run` and who lives below it."""

    process: subprocess.Popen[bytes]
    run: Path
    injected: list[Injected] = field(default_factory=list)

    @property
    def step(self) -> int:
        return last_step(self.run / "metrics.jsonl")

    async def kill(self, victim: str) -> None:
        """If it is there: between two lives it is not."""
        found = self._find(victim)
        if found is not None:
            self.injected.append(Injected(f"under reflux run: {victim.removesuffix('s')} killed", time.monotonic(), self.step))
            with suppress(psutil.NoSuchProcess):
                found.kill()

    def _find(self, victim: str) -> psutil.Process | None:
        with suppress(psutil.Error, FileNotFoundError, ValueError):
            for child in psutil.Process(self.process.pid).children():
                if child.status() != psutil.STATUS_ZOMBIE and self._is(victim, child):
                    return child
        return None

    def _is(self, victim: str, child: psutil.Process) -> bool:
        if victim == "server":
            return bool(json.loads((self.run / "bus.json").read_text())["pid"] == child.pid)
        return victim in child.cmdline()

    async def moved_on(self) -> bool:
        reached, deadline = self.step, time.monotonic() + _PATIENCE_S
        while self.process.poll() is None and self.step <= reached and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return self.process.poll() is None and self.step > reached


async def supervised(directory: Path, settings: Mapping[str, object], limit_s: float, rng: Random, deaths: int) -> Trial:
    """Ends what it started."""
    began = time.monotonic()
    directory.mkdir(parents=True)  # noqa: ASYNC240 - returns at once
    command = ["--config", str(CONFIG), *(f"--set={key}={value}" for key, value in {**settings, "run.dir": directory / "runs"}.items())]
    output = directory / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [sys.executable, "-m", "deploy", "run", *command[1:]],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    one = Supervised(process, directory / "runs" / "arithmetic")
    try:
        while len(one.injected) < deaths and await one.moved_on():
            for victim in rng.choices(VICTIMS, k=rng.randint(1, _MOST_IN_A_BURST)):
                await one.kill(victim)
                await asyncio.sleep(rng.uniform(0.0, 0.5))
        code = await asyncio.to_thread(process.wait, max(1.0, limit_s - (time.monotonic() - began)))
    except subprocess.TimeoutExpired:
        code = None
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)
    ended = time.monotonic()
    samples = await asyncio.to_thread(account, one.run, command)
    for fault in one.injected:
        fault.survived = samples.finished or one.step > fault.step
    strange = [] if code == 0 else [f"reflux run ended with {code}: {output.read_text().strip().splitlines()[-1:]}"]
    return Trial(directory.name, round(time.monotonic() - began, 1), samples, one.injected, strange=strange + _hidden(one, output, ended))


def _hidden(one: Supervised, output: Path, ended: float) -> list[str]:
    """Deaths of which nobody was told, but for those at the very end."""
    told, deaths = output.read_text().count("started again"), sum(fault.at < ended - _NOTICED_S for fault in one.injected)
    return [f"{deaths} deaths, of which {told} were told"] if told < deaths else []
