"""A real run of the example - separate processes, embedded server - watched from outside: CPU by phase, process and thread, and reports.

The kernel says what every process spent (psutil); the run's own files say which phase it is in; the workers' reports on the bus (Pulse) say
which stage the time went to. Nothing in the run knows that it is watched.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.rates import ROOT
from common import bus as buses
from common.bus.address import ADDRESS_FILE, read_address
from common.config import RunConfig, load_config
from common.errors import BusError
from common.pulse import Report
from learner.directory import RunDirectory

CONFIG = ROOT / "examples/arithmetic/run.toml"
NAME = "bench-stages"
STARTUP, EVALUATION, TRAINING, END = "start-up", "evaluation", "training", "final checkpoint and export"
_LOOK_S = 0.1
_REPORTS_S = 1.0
_ROLES = {"learner": "learner", "producers": "producer", "scorers": "scorer", "deploy": "supervisor"}


@dataclass(frozen=True, slots=True)
class Look:
    """CPU seconds so far: of every role's processes, and of their main threads, which run the event loops."""

    at: float
    phase: str
    process_s: dict[str, float]
    loop_s: dict[str, float]


@dataclass(slots=True)
class Observed:
    """All that was seen; `reports` in order of time."""

    directory: Path
    batch_size: int
    looks: list[Look] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)


class _Processes:
    """Those of one run; the dead keep what they had."""

    def __init__(self, supervisor: int, directory: Path) -> None:
        self._supervisor = psutil.Process(supervisor)
        self._directory = directory
        self._known: dict[int, tuple[str, psutil.Process]] = {}
        self._spent: dict[int, tuple[float, float]] = {}

    def look(self, phase: str) -> Look:
        """Now."""
        self._find()
        for pid, (_, process) in self._known.items():
            with suppress(psutil.Error):
                times = process.cpu_times()
                loop = next((t.user_time + t.system_time for t in process.threads() if t.id == pid), 0.0)
                self._spent[pid] = (times.user + times.system, loop)
        process_s: dict[str, float] = {}
        loop_s: dict[str, float] = {}
        for pid, (role, _) in self._known.items():
            spent, loop = self._spent.get(pid, (0.0, 0.0))
            process_s[role] = process_s.get(role, 0.0) + spent
            loop_s[role] = loop_s.get(role, 0.0) + loop
        return Look(time.time(), phase, process_s, loop_s)

    def _find(self) -> None:
        address = read_address(self._directory / ADDRESS_FILE)
        with suppress(psutil.Error):
            for process in (self._supervisor, *self._supervisor.children(recursive=True)):
                if process.pid not in self._known:
                    role = "server" if address and process.pid == address.pid else _role(process.cmdline())
                    if role:
                        self._known[process.pid] = (role, process)


def _role(command: list[str]) -> str | None:
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    return _ROLES.get(module)


def phase_of(directory: RunDirectory, steps: int) -> str:
    """What the run's files say that it is doing. Evaluations are before and after only."""
    if directory.open_evaluation.exists():
        return EVALUATION
    text = directory.metrics.read_text() if directory.metrics.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    done = max((line["step"] for line in lines if "loss" in line), default=0)
    if done >= steps:
        return END
    return TRAINING if lines or directory.evaluations.exists() else STARTUP


def observe(steps: int, settings: list[str]) -> Observed:
    """Runs the example to its end."""
    overrides = [f"run.name={NAME}", f"learner.steps={steps}", "evaluation.every=0", *settings]
    config = load_config(CONFIG, [*overrides, f"run.dir={ROOT / 'runs'}"])
    shutil.rmtree(config.directory, ignore_errors=True)
    command = [sys.executable, "-m", "deploy", "run", str(CONFIG)]
    command += [part for override in overrides for part in ("--set", override)]
    (ROOT / "runs").mkdir(exist_ok=True)
    with (ROOT / "runs" / f"{NAME}.log").open("w") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) as run:
        try:
            seen = asyncio.run(_watch(config, run))
        finally:
            run.terminate()
    if run.returncode or not RunDirectory(config.directory).result.exists():
        sys.exit(f"the run failed: see {out.name}")
    return seen


async def _watch(config: RunConfig, run: subprocess.Popen[bytes]) -> Observed:
    seen = Observed(config.directory, config.learner.batch_size)
    processes, directory = _Processes(run.pid, config.directory), RunDirectory(config.directory)
    collecting = asyncio.create_task(_collect(config, seen), name="reports")
    while run.poll() is None:
        seen.looks.append(processes.look(phase_of(directory, config.learner.steps)))
        await asyncio.sleep(_LOOK_S)
    collecting.cancel()
    await asyncio.wait([collecting])
    return seen


async def _collect(config: RunConfig, seen: Observed) -> None:
    logging.getLogger("common.bus").setLevel(logging.CRITICAL)
    with suppress(BusError):  # the server ends with the run
        async with buses.connect(config, name=f"benchmark-{os.getpid()}") as bus:
            while True:
                known = {(report.name, report.at) for report in seen.reports}
                reports = [Report.decode(raw) for raw in (await bus.reports()).values()]
                seen.reports += [report for report in reports if (report.name, report.at) not in known]
                await asyncio.sleep(_REPORTS_S / 2)
