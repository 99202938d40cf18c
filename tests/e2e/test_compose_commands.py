"""The services of deploy/compose.yaml as processes of this machine: their very commands and health checks, with paths and ports moved."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.bus.embedded import free_port

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")
STEPS = 6


class Stack:
    """Starts services; what a container would see as /keys, /runs and redis:6379 lies elsewhere here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        command = [COMPOSE, "config", "--format", "json"]
        read = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        self.services: dict[str, Any] = json.loads(read.stdout)["services"]
        self._redis = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("keys", "runs", "data"):
            (directory / name).mkdir()
        text = (ROOT / "examples/arithmetic/compose.toml").read_text()
        self._config = directory / "compose.toml"
        self._config.write_text(self.moved(text).replace('= "models/', f'= "{ROOT}/examples/arithmetic/models/'))
        for name in ("train.jsonl", "heldout.jsonl"):
            (directory / name).symlink_to(ROOT / "examples/arithmetic" / name)

    def moved(self, text: str) -> str:
        """With this machine's paths and ports."""
        for name in ("keys", "runs", "data"):
            text = text.replace(f"/{name}/", f"{self.directory}/{name}/").replace(f'"/{name}"', f'"{self.directory}/{name}"')
        return text.replace("redis:6379", f"127.0.0.1:{self._redis}")

    def command(self, name: str, *more: str) -> list[str]:
        """The service's, with `more` behind it."""
        words = [self.moved(word) for word in self.services[name]["command"]]
        words = [word.replace("/reflux/examples/arithmetic/compose.toml", str(self._config)) for word in words]
        words = [str(self.directory / "data") if word == "/data" else word for word in words]
        return [*words, *more]

    def run(self, name: str) -> None:
        subprocess.run(self.command(name), env=self.environment, check=True)

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(self.command(name, *more), env=self.environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def redis(self) -> None:
        self.start("redis", "--bind", "127.0.0.1", "--port", str(self._redis))

    @property
    def environment(self) -> dict[str, str]:
        here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        return {**os.environ, **here, "OMP_NUM_THREADS": "1"}

    def healthy(self, name: str, port: int = 0) -> bool:
        """What the service's health check says, of the copy that listens on `port`."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        words = [self.moved(word).replace("$$", "$").replace(":9100/", f":{port}/").replace(":8400/", f":{port}/") for word in words]
        if kind == "CMD-SHELL":
            words = ["sh", "-c", words[0].replace("redis-cli", f"redis-cli -p {self._redis}")]
        return subprocess.run(words, env=self.environment, capture_output=True, check=False).returncode == 0

    def wait_healthy(self, name: str, port: int = 0) -> None:
        deadline = time.monotonic() + 60
        while not self.healthy(name, port):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(self.directory.glob("*.log")))

    def stop(self) -> None:
        for process in self._processes[::-1]:
            process.terminate()
        for process in self._processes:
            process.wait(40)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    for program in ("redis-server", "redis-cli"):
        if not shutil.which(program):
            pytest.skip(f"needs {program}, as the Redis image has it (Debian: apt install redis-server)")
    stack = Stack(tmp_path)
    yield stack
    stack.stop()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_services_of_compose_train_the_example_with_two_scorers(stack: Stack) -> None:
    stack.run("keys")
    first = (stack.directory / "keys/users.acl").read_text()
    stack.redis()
    stack.wait_healthy("redis")
    roles = {}
    settings = ("--set", f"learner.steps={STEPS}", "--set", "evaluation.prompts=64", "--set", "service.metrics_host=127.0.0.1")
    for name in ("learner", "producer", "scorer", "scorer"):
        port = free_port()
        roles[port] = (name, stack.start(name, *settings, "--set", f"service.metrics_port={port}"))
    for port, (name, _) in roles.items():
        stack.wait_healthy(name, port)
    port = free_port()
    stack.start("dashboard", "--host", "127.0.0.1", "--port", str(port))
    learner = next(process for name, process in roles.values() if name == "learner")
    assert learner.wait(180) == 0, stack.logs()
    result = json.loads((stack.directory / "runs/arithmetic/result.json").read_text())
    assert result["ledger"]["applied"] == STEPS * 64
    stack.wait_healthy("dashboard", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/state", timeout=60) as reply:
        assert json.load(reply)["steps"]
    stack.run("keys")  # `up` again: nobody is locked out
    assert (stack.directory / "keys/users.acl").read_text() == first
