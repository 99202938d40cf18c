"""One role's place in a chaotic run: the process that fills it now, its line to the server, and the orders that its program obeys."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos_line import Line

ROOT = Path(__file__).resolve().parents[2]
_DOOMED = Path(__file__).with_name("doomed.py")
_POLL_S = 0.02


@dataclass(slots=True)
class Life:
    """One process of a role. `killed`: its end was ours; `replaced`: a learner that another one was started over."""

    process: subprocess.Popen[bytes]
    directory: Path
    log: Path
    born: float
    because: str = ""  # the fault that ended the life before
    undisturbed: bool = True  # nothing else happened to it or to the server before it was ready
    ready: float = 0.0
    killed: bool = False
    replaced: bool = False
    dead_since: float = 0.0

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def obeyed(self) -> bool:
        return (self.directory / "obeyed").exists()

    @property
    def last_line(self) -> str:
        return self.log.read_text(errors="replace").strip().rpartition("\n")[2]

    def kill(self) -> None:
        self.killed = True
        self.process.kill()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        if self.alive:
            self.process.send_signal(signal.SIGCONT)

    async def order(self, what: str, point: str, timeout: float) -> bool:
        """It is to "kill" or "stop" itself at the point; False where it did not come there in time, or had ended before."""
        file = self.directory / "order"
        (self.directory / "obeyed").unlink(missing_ok=True)
        self.killed = what == "kill"
        self._write(file, f"{what} {point}")
        deadline = time.monotonic() + timeout
        while not self.obeyed and self.alive and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        file.unlink(missing_ok=True)
        self.killed = self.killed and self.obeyed
        return self.obeyed

    def set_clock(self, seconds: float) -> None:
        self._write(self.directory / "clock", str(seconds))

    @staticmethod
    def _write(file: Path, text: str) -> None:
        new = file.with_suffix(".new")
        new.write_text(text)
        new.replace(file)


@dataclass(slots=True)
class Post:
    """`name` is unique in the run; `lives` are all there were, the last one fills the place."""

    name: str
    module: str
    line: Line
    directory: Path
    command: Sequence[str]  # the configuration and all settings
    lives: list[Life] = field(default_factory=list)
    started: list[Life] = field(default_factory=list)  # also those that never filled the place

    @property
    def role(self) -> str:
        return self.module.removesuffix("s")

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def begin(self, *arguments: str, because: str = "", since: float = 0.0) -> Life:
        """A new life; the one before is over, or is replaced. `since`: when the one before ended."""
        life = self.start(*arguments, because=because)
        life.dead_since = since or life.born
        self.lives.append(life)
        return life

    def start(self, *arguments: str, because: str = "") -> Life:
        """A process of this role that does not fill the place."""
        directory = self.directory / f"{self.name}.{len(self.started)}"
        directory.mkdir()
        log = directory / "log"
        with log.open("wb") as out:
            command = [sys.executable, str(_DOOMED), str(directory), self.module, *self.command, *arguments]
            process = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.started.append(Life(process, directory, log, time.monotonic(), because))
        return self.started[-1]


def environment() -> dict[str, str]:
    """Of every process of the run."""
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": str(ROOT)}
