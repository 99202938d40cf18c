"""One role's process: its log, its end, and what it has cost.

Guarantees: the process dies with the supervisor (deploy/launch.py), gets no signals but those sent on purpose, and writes to a log of its
own; `poll` never blocks and reaps it together with the CPU seconds of itself and of its children.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCH = Path(__file__).with_name("launch.py")
_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. `code` is negative for a signal, as subprocess has it."""

    code: int
    cpu_s: float
    reason: str  # its last line, or the signal


class Process:
    """A running program with a log."""

    def __init__(self, pid: int, log: Path, log_start: int) -> None:
        self.pid = pid
        self._log = log
        self._log_start = log_start
        self._exit: Exit | None = None

    @classmethod
    def start(cls, command: Sequence[str], *, log: Path, environment: Mapping[str, str], nice: int) -> Process:
        """`command[0]` is an absolute path."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            begins = output.tell()
            popen = subprocess.Popen(
                [sys.executable, "-S", str(_LAUNCH), str(os.getpid()), str(nice), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        popen.returncode = 0  # reaped by poll(), with its resource usage
        return cls(popen.pid, log, begins)

    def poll(self) -> Exit | None:
        """Its end, once it has ended."""
        if self._exit is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                reason = f"killed by {signal.Signals(-code).name}" if code < 0 else self.last_line()
                self._exit = Exit(code, usage.ru_utime + usage.ru_stime, reason)
        return self._exit

    def send(self, number: signal.Signals) -> None:
        """Signals it, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def last_line(self) -> str:
        """The last line of its log since it started."""
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - _TAIL_BYTES))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"
