"""Small runs of the example as a person starts them: `reflux run`, in processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "examples" / "arithmetic" / "run.toml"
SMALL = {
    "learner.batch_size": 16,
    "learner.steps": 8,
    "learner.checkpoint_every": 3,
    "evaluation.prompts": 32,
    "producer.slots": 32,
    "bus.lease_s": 3,
    "service.heartbeat_s": 0.3,
    "service.drain_s": 10,
}


class Example:
    """One run's directory and the commands on it."""

    def __init__(self, directory: Path) -> None:
        self.runs = directory / "runs"
        self.directory = self.runs / "arithmetic"
        self.settings: dict[str, object] = dict(SMALL)
        self.started: list[subprocess.Popen[str]] = []

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def command(self, *arguments: str) -> list[str]:
        name, *rest = arguments
        actions = [rest.pop(0)] if name == "dead" else []
        sets = [f"--set={key}={value}" for key, value in {**self.settings, "run.dir": self.runs}.items()]
        return [sys.executable, "-m", "deploy", name, *actions, str(CONFIG), *rest, *sets]

    def go(self, *arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=timeout, check=False)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a command; its output goes to a file."""
        log = (self.runs.parent / f"out-{len(self.started)}.log").open("w")
        process = subprocess.Popen(self.command(*arguments), env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True)
        log.close()
        self.started.append(process)
        return process

    def output(self) -> str:
        """Of all that was started."""
        return "".join(path.read_text() for path in sorted(self.runs.parent.glob("out-*.log")))

    @property
    def step(self) -> int:
        """The last step on record."""
        steps = [line["step"] for line in self.lines("metrics.jsonl") if "loss" in line]
        return max(steps, default=0)

    def lines(self, name: str) -> list[dict[str, Any]]:
        file = self.directory / name
        return [json.loads(text) for text in file.read_text().splitlines() if text.endswith("}")] if file.exists() else []

    @property
    def result(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.directory / "result.json").read_text())
        return values

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = 200) -> None:
        """Polls; a supervisor that ends meanwhile is a failure."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout} s for {what}\n{self.output()}"
            assert self.started[-1].poll() is None, f"the run ended before {what}\n{self.output()}"
            time.sleep(0.05)

    def process_of(self, module: str) -> psutil.Process | None:
        """The role's process below the supervisor started last."""
        for child in psutil.Process(self.started[-1].pid).children(recursive=True):
            try:
                command = child.cmdline()
            except psutil.Error:
                continue
            if "-m" in command and module in command and child.status() != psutil.STATUS_ZOMBIE:
                return child
        return None

    def kill(self, module: str) -> int:
        """kill -9 of one of the role's processes; returns when another has taken its place."""
        victim = self.process_of(module)
        assert victim is not None
        victim.kill()
        self.wait_for(lambda: (other := self.process_of(module)) is not None and other.pid != victim.pid, f"another {module}")
        return victim.pid

    @property
    def server_pid(self) -> int:
        pid: int = json.loads((self.directory / "bus.json").read_text())["pid"]
        return pid


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    if not (CONFIG.parent / "models" / "student").is_dir():
        pytest.skip("the example's models are not there: make example-models")
    run = Example(tmp_path)
    yield run
    for process in run.started:
        if process.poll() is None:
            process.kill()
        process.wait()
