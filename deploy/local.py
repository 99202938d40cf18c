"""A whole run on this machine: the server, every role as a process of its own, and somebody who keeps them alive.

Guarantees: nothing starts before the configuration, the files and the directory have passed `preflight`; one supervisor per run; whatever
ends the run, no process of it is left, and the same call goes on where it was. A finished run is returned, never run again.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from common import bus as buses
from common.config import RunConfig
from common.errors import ConfigError, RefluxError, UserError
from deploy.lock import only_supervisor
from deploy.preflight import ask_servers, preflight
from deploy.process import Process
from deploy.result import Result, Usage, add_usage, complete_result
from deploy.roles import RoleSpec, environment
from deploy.scaling import wanted
from deploy.screen import Screen, open_screen
from deploy.server import Served, served
from deploy.supervisor import Ended, Running, Supervisor
from deploy.target import saved_config
from deploy.targets import write_targets
from deploy.watch import Watch
from learner.collapse import known_collapse
from learner.directory import RunDirectory
from learner.disk import term_number

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Spawn(Protocol):
    """Starts a role and returns at once."""

    def __call__(self, config: RunConfig, file: Path, spec: RoleSpec, *, take_over: bool) -> Running:
        """`file` is the run's resolved configuration."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where the roles run, if not as processes of this one; `servers` are kept alive like them."""

    spawn: Spawn
    servers: Sequence[RoleSpec] = ()


class RunFailed(RefluxError):
    """The run stopped and can be resumed by the same command."""


def run(config: RunConfig, *, fresh: bool = False) -> Result:
    """Runs to the end, or until Ctrl-C; raises UserError or RunFailed, one sentence each."""
    with open_screen(Console(), config.run.name, config.learner.steps) as screen:
        return asyncio.run(run_async(config, screen=screen, fresh=fresh))


async def run_async(
    config: RunConfig,
    *,
    screen: Screen,
    fresh: bool = False,
    take_over: bool = False,
    skip_preflight: bool = False,
    elsewhere: Elsewhere | None = None,
) -> Result:
    """The same in a running event loop; SIGINT and SIGTERM drain the run. `take_over`: although a learner's lease may still live;
    `elsewhere` there are as many scorers as [cluster] allows."""
    _check_addresses(config)
    with only_supervisor(config.directory):
        if fresh:
            await _forget(config, force=take_over)
            _move_aside(config.directory, screen)
        if not skip_preflight:
            preflight(config)
        directory = RunDirectory(config.directory)
        values = directory.finished()
        if values is not None:
            return Result(directory.root, "finished", values)
        if warning := known_collapse(config):
            screen.say(f"warning: {warning}")
        if not skip_preflight:
            await ask_servers(config, screen.say)
        with _stops_on_signals() as stopping, saved_config(config) as file:
            start = _forcing(elsewhere.spawn if elsewhere else _spawn, take_over=take_over)
            servers = elsewhere.servers if elsewhere else None
            return await _run_here(config, directory, file, screen, stopping, start, servers)


async def _run_here(
    config: RunConfig,
    directory: RunDirectory,
    file: Path,
    screen: Screen,
    stopping: asyncio.Event,
    spawn: Spawn,
    servers: Sequence[RoleSpec] | None,
) -> Result:
    began, before = time.monotonic(), _own_cpu_s()
    spent: dict[str, float] = {}
    try:
        async with served(config, screen.say) as server:
            ended = await _supervise(config, file, screen, stopping, server, spent, spawn, servers)
    except BaseExceptionGroup as group:
        raise _first_cause(group) from group
    finally:
        spent["supervisor"] = _own_cpu_s() - before
        total = add_usage(directory, Usage(time.monotonic() - began, spent))
    if ended.how == "failed":
        sentence = f"{ended.reason}; the same command goes on where the run stopped, logs are in {directory.root / 'logs'}"
        raise UserError(ended.reason.removeprefix("reflux ")) if ended.user else RunFailed(sentence)
    if ended.how == "finished" and directory.finished() is not None:
        return Result(directory.root, "finished", complete_result(directory, total))
    return Result(directory.root, "stopped", {})


async def _supervise(
    config: RunConfig,
    file: Path,
    screen: Screen,
    stopping: asyncio.Event,
    server: Served,
    spent: dict[str, float],
    spawn: Spawn,
    servers: Sequence[RoleSpec] | None,
) -> Ended:
    async with buses.connect(config, name=f"supervisor-{uuid.uuid4().hex[:12]}", role="operator") as bus:
        watch = Watch(bus=bus, period_s=config.service.heartbeat_s, show=screen.show)
        supervisor = Supervisor(
            specs=wanted(config, lambda: watch.looks, screen.say, servers=servers),
            spawn=lambda spec, again: spawn(config, file, spec, take_over=server.own or (again and _had_the_term(config, watch))),
            progress=lambda: watch.progress,
            say=screen.say,
            budget=config.service.restart_budget,
            drain_s=config.service.drain_s,
            cpu_s=spent,
        )
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(watch.run(), name="watch"),
                tasks.create_task(server.keep(lambda: watch.progress), name="server"),
            ]
            if servers is not None:
                background.append(tasks.create_task(write_targets(config.directory, lambda: watch.latest), name="metrics targets"))
            ended = await supervisor.run(stopping)
            for task in background:
                task.cancel()
    if server.own:
        spent["server"] = server.cpu_s()
    return ended


def _check_addresses(config: RunConfig) -> None:
    """Only on a cluster do [cluster.servers] get theirs."""
    for name in config.cluster.servers:
        if not (config.producer if name == "student" else config.teachers[name]).urls:
            key = "producer" if name == "student" else f"teachers.{name}"
            raise ConfigError(
                f"cluster.servers.{name} is started by `reflux up --ray` alone: start the servers yourself and name {key}.urls"
            )


def _forcing(spawn: Spawn, *, take_over: bool) -> Spawn:
    """The same, which with `take_over` takes over in any case."""
    forced = take_over

    def start(config: RunConfig, file: Path, spec: RoleSpec, *, take_over: bool) -> Running:
        return spawn(config, file, spec, take_over=take_over or forced)

    return start


def _had_the_term(config: RunConfig, watch: Watch) -> bool:
    """Whether the learner that died was this directory's, and not one that failed before it could see that another is alive."""
    mine = max((term_number(path) for path in RunDirectory(config.directory).terms.glob("term*")), default=0)
    state = watch.latest.state
    return mine > 0 and (state is None or mine >= state.term)


def _spawn(config: RunConfig, file: Path, spec: RoleSpec, *, take_over: bool) -> Process:
    more = ("--take-over",) if take_over and spec.role == "learner" else ()
    log_file = config.directory / "logs" / f"{spec.name}.log"
    return Process.start(spec.command(file, *more), log=log_file, environment=environment(config), nice=spec.nice)


def _first_cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _forget(config: RunConfig, *, force: bool) -> None:
    """Nothing of the old run stays on a server that is not its own."""
    if not config.bus.url:
        return
    async with buses.connect(config, name=f"supervisor-{uuid.uuid4().hex[:12]}", role="operator") as bus:
        alive = await bus.purge(force)
    if alive:
        raise UserError(
            f"the run {config.run.name} is alive on its server ({', '.join(alive)}): stop it first; "
            f"what was killed counts as alive for up to {config.bus.lease_s:g} s, and --take-over does not wait for that"
        )


def _move_aside(directory: Path, screen: Screen) -> None:
    if directory.exists():
        old = directory.with_name(f"{directory.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        directory.rename(old)
        screen.say(f"the old run was moved to {old}")


@contextmanager
def _stops_on_signals() -> Iterator[asyncio.Event]:
    """Set by SIGINT and SIGTERM where this is the main thread, which alone may ask."""
    stopping = asyncio.Event()
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield stopping
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
