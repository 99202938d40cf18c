"""The roles of a run on a Ray cluster: `reflux up --ray ADDRESS CONFIG`.

Ray places, starts and watches processes and nothing else: samples travel through Redis, weights through the store, as everywhere. Each role
is an actor that holds the resources of [cluster] and runs the role's own command as its child; the child dies with its actor. Every node
needs Reflux installed, and sees bus.url and, for the learner and the producers, run.dir under the same path.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any  # ray has no types

import ray
from ray.exceptions import RayActorError

from common.config import RunConfig
from common.errors import ConfigError
from deploy.process import Exit, Process
from deploy.roles import RoleSpec, environment, role_specs

LOCAL = "local"
_POLL_S = 0.1
_KNOCK_S = 5.0
_LOST = Exit(-signal.SIGKILL, 0.0, "its actor or its node was lost")


class RoleActor:
    """Lives on a node; its methods run on one event loop, so that nobody else reaps the child."""

    def __init__(self, config: RunConfig, spec: RoleSpec, file: Path, more: tuple[str, ...]) -> None:
        log = config.directory / "logs" / f"{spec.name}.log"
        self._process = Process.start(spec.command(file, *more), log=log, environment=environment(config), nice=0)

    async def wait(self) -> Exit:
        """The child's end."""
        while (ended := self._process.poll()) is None:  # noqa: ASYNC110 - reaping is by polling
            await asyncio.sleep(_POLL_S)
        return ended

    async def send(self, number: int) -> None:
        """A signal for the child."""
        self._process.send(signal.Signals(number))


class RayProcess:
    """A supervisor's Running, somewhere on the cluster."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self._end = actor.wait.remote()
        self._exit: Exit | None = None

    def poll(self) -> Exit | None:
        """Its end, once it has ended; the actor's resources are then free again."""
        if self._exit is None and ray.wait([self._end], timeout=0)[0]:
            try:
                self._exit = ray.get(self._end)
            except RayActorError:
                self._exit = _LOST
            ray.kill(self.actor)
        return self._exit

    def send(self, number: signal.Signals) -> None:
        """Signals it, if it still runs; SIGKILL goes to its actor, which may not listen any more."""
        if number == signal.SIGKILL:
            ray.kill(self.actor)
        elif self.poll() is None:
            self.actor.send.remote(int(number))


@contextmanager
def cluster(address: str, config: RunConfig) -> Iterator[None]:
    """Connected to Ray while inside. Raises ConfigError where nobody answers or the roles cannot all have a place."""
    if address != LOCAL and not config.bus.url:
        raise ConfigError("on a cluster every node must reach the server: set bus.url to a Redis or Valkey that they all reach")
    _connect(address)
    try:
        _check_resources(config)
        yield
    finally:
        ray.shutdown()


def spawn(config: RunConfig, file: Path, spec: RoleSpec, *, take_over: bool) -> RayProcess:
    """Asks Ray for an actor that runs the role; returns at once."""
    more = ("--take-over",) if take_over and spec.role == "learner" else ()
    cpus, gpus = resources(config, spec)
    remote = ray.remote(RoleActor).options(num_cpus=cpus, num_gpus=gpus, name=f"reflux-{config.run.name}-{spec.name}-{os.urandom(4).hex()}")
    return RayProcess(remote.remote(config, spec, file, more))


def resources(config: RunConfig, spec: RoleSpec) -> tuple[float, float]:
    """CPUs and GPUs of a role's actor; the learner's ranks share one node and hence one actor."""
    section = config.cluster
    count = config.learner.ranks if spec.role == "learner" else 1
    cpus: float = getattr(section, f"{spec.role}_cpus")
    gpus: float = getattr(section, f"{spec.role}_gpus")
    return count * cpus, count * gpus


def _connect(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), _KNOCK_S).close()
        except OSError as error:
            raise ConfigError(
                f"no Ray cluster answers at {address} ({error}): start one with `ray start --head`, or use --ray local"
            ) from None
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    given = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, runtime_env={"env_vars": {"PYTHONPATH": _path()}}, **given)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"no Ray cluster answers at {address} ({reason}): start one with `ray start --head`, or use --ray local"
        ) from None


def _path() -> str:
    """Where this process found Reflux, for workers on nodes with the same layout."""
    return os.pathsep.join(path for path in sys.path if path)


def _check_resources(config: RunConfig) -> None:
    have = ray.cluster_resources()
    wanted = [resources(config, spec) for spec in role_specs(config)]
    for name, asked in (("CPU", sum(cpus for cpus, _ in wanted)), ("GPU", sum(gpus for _, gpus in wanted))):
        if asked > have.get(name, 0.0):
            raise ConfigError(
                f"the roles of this run ask for {asked:g} {name}, the Ray cluster has {have.get(name, 0.0):g}: add nodes, start fewer "
                f"producers or scorers, or lower cluster.*_{name.lower()}s"
            )
