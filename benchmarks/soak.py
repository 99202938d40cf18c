"""`make soak`: the example at the highest rate that this machine gives, watched for what grows that must not.

Exit code 0 only where every role's resident memory is flat, no process was replaced, the server's memory stayed under bus.max_bytes, and
the run got on. Flat: over what is left after the warm-up, the median of all slopes (Theil-Sen: a garbage collection or two do not move it)
makes less than `_GROWTH` of the median memory. Checkpoints, publications and journal trimming go on all the while.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import psutil

from benchmarks.rates import ROOT
from common import bus as buses
from common.bus.address import ADDRESS_FILE, read_address
from common.config import RunConfig, load_config
from common.errors import BusError

_CONFIG = ROOT / "examples/arithmetic/run.toml"
_ROLES = {"learner": "learner", "producers": "producer", "scorers": "scorer", "deploy": "supervisor"}
_LOOKS = 120
"""How many points of each role the slope is taken from."""
_WARM_UP = 0.3
"""Share of the time that caches and pools may take to fill."""
_GROWTH = 0.05
_NOISE = 4 << 20
"""Bytes that pages of the allocator come and go by."""
_SETTINGS = (
    "run.name=soak",
    "learner.steps=1000000",
    "learner.record=false",
    "learner.checkpoint_every=25",
    "evaluation.every=0",
    "evaluation.prompts=0",
    "optimizer.schedule=constant",
    "optimizer.lr=1e-6",
)


@dataclass(slots=True)
class Seen:
    """What was looked at: per role (seconds, bytes), pids, and the server's memory as itself counts it."""

    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    pids: dict[str, set[int]] = field(default_factory=dict)
    used: list[int] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table."""

    role: str
    median: float
    growth: float  # bytes over the time judged
    lives: int

    @property
    def flat(self) -> bool:
        return self.growth <= max(_NOISE, _GROWTH * self.median)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen: the median of the slopes of all pairs."""
    step = max(1, len(points) // _LOOKS)
    return statistics.median((y - b) / (x - a) for (a, b), (x, y) in combinations(points[::step], 2))


def judge(role: str, points: Sequence[tuple[float, int]], lives: int) -> Verdict:
    """Of what is left after the warm-up."""
    begin, end = points[0][0], points[-1][0]
    kept = [(at, float(size)) for at, size in points if at >= begin + _WARM_UP * (end - begin)]
    return Verdict(role, statistics.median(size for _, size in kept), slope(kept) * (kept[-1][0] - kept[0][0]), lives)


def soak(minutes: float, settings: Sequence[str]) -> tuple[Seen, RunConfig]:
    """Runs the example for so long, in a directory of its own that is gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="reflux-soak-"))
    config = load_config(_CONFIG, [*_SETTINGS, f"run.dir={place}", *settings])
    overrides = [part for one in (*_SETTINGS, f"run.dir={place}", *settings) for part in ("--set", one)]
    with (place / "run.log").open("w") as out:
        run = subprocess.Popen([sys.executable, "-m", "deploy", "run", str(_CONFIG), *overrides], cwd=ROOT, stdout=out, stderr=out)
    try:
        seen = asyncio.run(_watch(config, run, minutes * 60))
        if run.poll() is not None:
            sys.exit(f"the run ended by itself:\n{(place / 'run.log').read_text()[-2000:]}")
    finally:
        run.terminate()
        run.wait(90)
        shutil.rmtree(place, ignore_errors=True)
    return seen, config


async def _watch(config: RunConfig, run: subprocess.Popen[bytes], seconds: float) -> Seen:
    seen = Seen()
    logging.getLogger("common.bus").setLevel(logging.CRITICAL)
    async with buses.connect(config, name=f"soak-{os.getpid()}") as bus:
        while run.poll() is None and not (await bus.state()).applied:  # noqa: ASYNC110 - another process's progress
            await asyncio.sleep(0.2)
        began = time.monotonic()
        while run.poll() is None and (now := time.monotonic() - began) < seconds:
            _look(seen, config, run.pid, now)
            with suppress(BusError):
                state = await bus.state()
                seen.used.append(state.used_bytes)
                seen.applied.append(state.applied)
            await asyncio.sleep(max(0.5, seconds / 1000))
    return seen


def _look(seen: Seen, config: RunConfig, supervisor: int, at: float) -> None:
    address = read_address(config.directory / ADDRESS_FILE)
    with suppress(psutil.Error):
        for process in (psutil.Process(supervisor), *psutil.Process(supervisor).children(recursive=True)):
            role = "server" if address and process.pid == address.pid else _role(process.cmdline())
            if role:
                seen.memory.setdefault(role, []).append((at, process.memory_info().rss))
                seen.pids.setdefault(role, set()).add(process.pid)


def _role(command: list[str]) -> str | None:
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    return _ROLES.get(module)


def table(seen: Seen, config: RunConfig, minutes: float) -> tuple[str, bool]:
    """For a person, and whether all is well."""
    verdicts = [judge(role, points, len(seen.pids[role])) for role, points in sorted(seen.memory.items())]
    rows = ["| role | median RSS, MB | growth over the time judged, MB | lives | |", "|---|---|---|---|---|"]
    rows += [f"| {v.role} | {v.median / 1e6:.1f} | {v.growth / 1e6:+.2f} | {v.lives} | {'flat' if v.flat else 'GROWS'} |" for v in verdicts]
    most, applied = max(seen.used), seen.applied[-1] - seen.applied[0]
    rows += [
        "",
        f"{minutes:g} minutes, {applied:,} samples ({applied / (60 * minutes):.0f}/s); Redis used at most {most / 1e6:.1f} MB "
        f"of bus.max_bytes {config.bus.max_bytes / 1e6:.0f} MB.",
    ]
    well = all(v.flat and v.lives == 1 for v in verdicts) and most < config.bus.max_bytes and applied > 0
    return "\n".join(rows), well


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="change one key of the example")
    arguments = parser.parse_args()
    seen, config = soak(arguments.minutes, arguments.settings)
    text, well = table(seen, config, arguments.minutes)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
