"""The roles of the example started one by one against a real server, as on several hosts, and ways to make one place slow from outside."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from common.bus.embedded import find_server, free_port
from common.service import EXIT_FAILED

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "examples" / "arithmetic" / "run.toml"


class Server:
    """A Redis-protocol server with a password and an append-only file; may be killed and started again on its data."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port, self._password = free_port(), secrets.token_hex(8)
        self.url = f"redis://:{self._password}@127.0.0.1:{self._port}/0"
        directory.mkdir()
        self.start()

    def start(self) -> None:
        settings = f"bind 127.0.0.1\nport {self._port}\nrequirepass {self._password}\nappendonly yes\nappendfsync always\nsave ''\n"
        with (self._directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen([find_server(), "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._directory)
        assert self.process.stdin
        with self.process.stdin as stdin:
            stdin.write(settings.encode())
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline, (self._directory / "server.log").read_text()
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Role:
    """A role's process and what it has said."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self.process, self._log = name, process, log

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        return self.said.strip().rpartition("\n")[2]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(100)


class ByHand:
    """One run on one server; `example` has its settings, its directory and the commands on it."""

    def __init__(self, example: Any, server: Server) -> None:
        self.example, self.server = example, server
        self.roles: list[Role] = []
        example.settings["bus.url"] = server.url

    def start(self, module: str, *arguments: str, program: str = "") -> Role:
        """`python -m MODULE`, or the test program PROGRAM in its place."""
        sets = [f"--set={key}={value}" for key, value in {**self.example.settings, "run.dir": self.example.runs}.items()]
        what = [str(Path(__file__).with_name(program))] if program else ["-m", module]
        return self.start_command([sys.executable, *what, "--config", str(CONFIG), *sets, *arguments], module)

    def start_command(self, command: list[str], name: str = "command") -> Role:
        """Any other process of the run."""
        log = self.example.runs.parent / f"{len(self.roles)}-{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)
        self.roles.append(Role(name, process, log))
        return self.roles[-1]

    @property
    def environment(self) -> dict[str, str]:
        """With the programs and functions of these tests on the path."""
        path = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
        return {**self.example.environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = 200) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout} s for {what}\n{self.all_said()}"
            assert not any(role.process.poll() == EXIT_FAILED for role in self.roles), f"a role failed before {what}\n{self.all_said()}"
            time.sleep(0.05)

    def all_said(self) -> str:
        return "\n".join(f"--- {role.name} ({role.process.poll()})\n{role.said[-3000:]}" for role in self.roles)

    def who_waits_for_whom(self) -> str:
        """The last line of `reflux status`."""
        command = self.example.command("status")
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().rpartition("\n")[2]


@contextmanager
def roles_by_hand(example: Any) -> Iterator[ByHand]:
    """Nothing of it is left afterwards."""
    hand = ByHand(example, Server(example.runs.parent / "server"))
    try:
        yield hand
    finally:
        for process in [role.process for role in hand.roles] + [hand.server.process]:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def slowed(pid: int, share: float, period_s: float = 0.1) -> Iterator[None]:
    """The process runs only in `share` of the time, as on a machine that is so much slower."""
    ended = threading.Event()

    def duty() -> None:
        with suppress(ProcessLookupError):  # it may end meanwhile
            while not ended.is_set():
                os.kill(pid, signal.SIGSTOP)
                ended.wait(period_s * (1 - share))
                os.kill(pid, signal.SIGCONT)
                ended.wait(period_s * share)

    thread = threading.Thread(target=duty)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def step_of(text: str) -> int:
    """Where a status text says that the run is."""
    found = re.search(r"step (\d+) of", text)
    return int(found[1]) if found else -1
