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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any  # ray has no types

import ray
from ray.exceptions import RayActorError

from common.config import RunConfig
from common.errors import ConfigError
from deploy.local import Elsewhere
from deploy.placement import Room, reserve, resources
from deploy.process import Exit, Process
from deploy.roles import RoleSpec, environment
from deploy.servers import STUDENT, placed_servers, server_specs, until_they_answer

LOCAL = "local"
_POLL_S = 0.1
_KNOCK_S = 5.0
_LOST = Exit(-signal.SIGKILL, 0.0, "its actor or its node was lost")


class RoleActor:
    """Lives on a node; its methods run on one event loop, so that nobody else reaps the child."""

    def __init__(self, config: RunConfig, spec: RoleSpec, file: Path, more: tuple[str, ...]) -> None:
        log = config.directory / "logs" / f"{spec.name}.log"
        self._process = Process.start(spec.command(file, *more), log=log, environment=environment(config), nice=0)
        self._log = log.open(errors="replace")
        self._log.seek(0, os.SEEK_END)

    async def wait(self) -> Exit:
        """The child's end. Until then its log is repeated as the actor's own, for whoever asks Ray."""
        while (ended := self._process.poll()) is None:
            await asyncio.sleep(_POLL_S)
            print(self._log.read(), end="", flush=True)
        print(self._log.read(), end="", flush=True)
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
def cluster(address: str, config: RunConfig, say: Callable[[str], None]) -> Iterator[tuple[RunConfig, Elsewhere]]:
    """Connected to Ray while inside, with room for all roles and with the servers of [cluster.servers] answering; the configuration names
    their addresses. Raises ConfigError where nobody answers, or there is no room."""
    if address != LOCAL and not config.bus.url:
        raise ConfigError("on a cluster every node must reach the server: set bus.url to a Redis or Valkey that they all reach")
    _connect(address)
    try:
        room = reserve(config, server_specs(config), say)
        specs, placed = placed_servers(config, room.address)
        running = {spec.name: _spawn(placed, Path(), spec, room=room) for spec in specs}
        urls = {spec.name: _url(placed, spec) for spec in specs}
        until_they_answer(placed, running, urls, say)
        yield placed, Elsewhere(partial(_spawn_or_take, room, running), specs)
    finally:
        ray.shutdown()


def _url(config: RunConfig, spec: RoleSpec) -> str:
    return (config.producer if spec.owner == STUDENT else config.teachers[spec.owner]).urls[spec.index]


def _spawn_or_take(
    room: Room, running: dict[str, RayProcess], config: RunConfig, file: Path, spec: RoleSpec, *, take_over: bool
) -> RayProcess:
    """A server that was started before the run is taken as it is, once."""
    return running.pop(spec.name, None) or _spawn(config, file, spec, room=room, take_over=take_over)


def _spawn(config: RunConfig, file: Path, spec: RoleSpec, *, room: Room, take_over: bool = False) -> RayProcess:
    """Asks Ray for an actor that runs the role; returns at once."""
    more = ("--take-over",) if take_over and spec.role == "learner" else ()
    cpus, gpus = resources(config, spec)
    name = f"reflux-{config.run.name}-{spec.name}-{os.urandom(4).hex()}"
    remote = ray.remote(RoleActor).options(num_cpus=cpus, num_gpus=gpus, name=name, **room.options(spec.name))
    return RayProcess(remote.remote(config, spec, file, more))


def _connect(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), _KNOCK_S).close()
        except (OSError, OverflowError, UnicodeError) as error:
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
