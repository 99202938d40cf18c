"""The services of deploy/compose.yaml as processes of this machine: their very commands and health checks, with paths and ports moved."""

from __future__ import annotations

import json
import os
import re
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
EXAMPLE = ROOT / "examples/arithmetic"
COMPOSE = Path(sys.executable).with_name("docker-compose")
STEPS = 6


class Stack:
    """Starts services of a profile; what a container would see as /keys, /runs, /files and redis:6379 lies elsewhere here."""

    def __init__(self, directory: Path, profile: str) -> None:
        self.directory = directory
        command = [COMPOSE, "--profile", profile, "config", "--format", "json"]
        read = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        self.services: dict[str, Any] = json.loads(read.stdout)["services"]
        self._suffix = "-gpu" if profile == "gpu" else ""
        self._redis = free_port()
        self._servers = {name: free_port() for name in ("student", "teacher")}
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("keys", "runs", "data"):
            (directory / name).mkdir()
        self._config = directory / "moved.toml"
        text = (EXAMPLE / ("gpu.toml" if profile == "gpu" else "compose.toml")).read_text()
        self._config.write_text(self.moved(text).replace('= "models/', f'= "{EXAMPLE}/models/'))
        for name in ("train.jsonl", "heldout.jsonl"):
            (directory / name).symlink_to(EXAMPLE / name)

    def named(self, name: str) -> str:
        """A role's service in this profile."""
        return name if name in self.services else name + self._suffix

    def moved(self, text: str) -> str:
        """With this machine's paths and ports."""
        for name in ("keys", "runs", "data"):
            text = text.replace(f"/{name}/", f"{self.directory}/{name}/").replace(f'"/{name}"', f'"{self.directory}/{name}"')
        for name, port in self._servers.items():
            text = text.replace(f"http://{name}:30000", f"http://127.0.0.1:{port}")
        for config in ("/reflux/examples/arithmetic/compose.toml", "/files/gpu.toml"):
            text = text.replace(config, str(self._config))
        return text.replace("/files/", f"{EXAMPLE}/").replace("redis:6379", f"127.0.0.1:{self._redis}")

    def command(self, name: str, *more: str) -> list[str]:
        """The service's, with `more` behind it."""
        words = [self.moved(word.replace("$$", "$")) for word in self.services[self.named(name)]["command"]]
        words = [str(self.directory / "data") if word == "/data" else word for word in words]
        return [*words, *more]

    def serve(self, name: str) -> None:
        """The stand-in where the container has SGLang; options that it does not share are an error."""
        _, dash_m, _, _, model, *words = self.command(name)
        words[words.index("0.0.0.0")], words[words.index("30000")] = "127.0.0.1", str(self._servers[name])
        self.start_command(name, ["python", dash_m, "deploy.sglang_standin", "--model", model, *words])
        self.wait_healthy(name, self._servers[name])

    def run(self, name: str) -> None:
        subprocess.run(self.command(name), env=self.environment, check=True)

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        return self.start_command(name, self.command(name, *more))

    def start_command(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
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
        kind, *words = self.services[self.named(name)]["healthcheck"]["test"]
        words = [re.sub(r"127\.0\.0\.1:\d+/", f"127.0.0.1:{port}/", self.moved(word).replace("$$", "$")) for word in words]
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
            process.wait(100)


@pytest.fixture
def stack(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    for program in ("redis-server", "redis-cli"):
        if not shutil.which(program):
            pytest.skip(f"needs {program}, as the Redis image has it (Debian: apt install redis-server)")
    stack = Stack(tmp_path, request.param)
    yield stack
    stack.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("stack", ["cpu", "gpu"], indirect=True)
def test_the_services_of_compose_train_the_example_with_two_scorers(stack: Stack) -> None:
    stack.run("keys")
    first = (stack.directory / "keys/users.acl").read_text()
    stack.redis()
    stack.wait_healthy("redis")
    for name in ("student", "teacher"):
        if name in stack.services:
            stack.serve(name)
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
    assert learner.wait(200) == 0, stack.logs()
    (file,) = (stack.directory / "runs").glob("*/result.json")
    result = json.loads(file.read_text())
    assert result["ledger"]["applied"] == STEPS * 64
    stack.wait_healthy("dashboard", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/state", timeout=60) as reply:
        assert json.load(reply)["steps"]
    stack.run("keys")  # `up` again: nobody is locked out
    assert (stack.directory / "keys/users.acl").read_text() == first
