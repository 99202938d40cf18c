"""`reflux dashboard`: which run is meant, and the page's server around it until Ctrl-C. A run that does not exist is one sentence."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from common.bus import connect_url
from common.bus.base import Bus
from common.bus.login import Login, login_at, token_in
from common.bus.runs import server_at, shared_runs
from common.config import RunConfig
from common.errors import BusError, ConfigError
from deploy.dashboard.app import application
from deploy.dashboard.source import BusSource, RunSource, Source
from deploy.target import open_target
from deploy.visit import connected, say

_TIMEOUT_S = 3.0
_PERIOD_S = 1.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
_WAIT_S = 2.0

Reach = Callable[[], AbstractAsyncContextManager[Bus]]


@dataclass(frozen=True, slots=True)
class Listening:
    """Where, and for whom."""

    host: str
    port: int
    token_file: Path | None = None


def dashboard(target: str, overrides: Sequence[str], *, run: str, listening: Listening, wait: bool) -> int:
    """Serves until it is stopped."""
    token = token_in(listening.token_file, "--token-file") if listening.token_file else ""
    source = asyncio.run(_found(target, overrides, run, wait=wait))
    with _bound(listening) as listener:
        _announce(source, listener, token)
        hosts = ("*",) if token else (*_LOOPBACK, listening.host)
        app = application(source, token=token, hosts=hosts, poll_s=_PERIOD_S)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, loop="asyncio", timeout_graceful_shutdown=2, server_header=False
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listener])
    return 0


async def _found(target: str, overrides: Sequence[str], run: str, *, wait: bool) -> Source:
    """Raises ConfigError where there is no such run; with `wait`, waits for it."""
    told = False
    while True:
        try:
            return await _source(target, overrides, run)
        except (ConfigError, BusError) as error:
            if not wait:
                raise
            if not told:
                say(f"waits for the run: {error}")
            told = True
            await asyncio.sleep(_WAIT_S)


async def _source(target: str, overrides: Sequence[str], run: str) -> Source:
    if "://" in target:
        login = login_at(target)
        name = run or await _only_run(target, login)
        return await _on_server(name, lambda: _at(target, name, login))
    if run:
        raise ConfigError("--run NAME belongs to a server's address; a configuration names its run itself")
    config = open_target(Path(target), overrides)
    beyond = None
    if config.bus.url and not config.directory.is_dir():
        beyond = await _on_server(config.run.name, lambda: connected(config, "observer"), config)
    if config.directory.is_dir():  # it is there before the learner claims its term
        return RunSource(config, period_s=_period(config))
    if beyond is not None:
        return beyond
    raise ConfigError(f"there is no run in {config.directory}: start it with `reflux run`, or name another")


def _period(config: RunConfig) -> float:
    return min(_PERIOD_S, config.service.heartbeat_s)


async def _on_server(name: str, reach: Reach, config: RunConfig | None = None) -> Source:
    async with reach() as bus:
        state = await bus.state()
    if not (state.term or state.cursor):
        raise ConfigError(f"there is no run {name} on this server: `reflux runs` lists those that are there")
    return BusSource(name, reach, period_s=_PERIOD_S, config=config)


async def _only_run(url: str, login: Login) -> str:
    async with server_at(url, _TIMEOUT_S, login) as client:
        names = [found.name for found in await shared_runs(client)]
    if len(names) == 1:
        return names[0]
    raise ConfigError(f"say which run with --run NAME: {', '.join(names)}" if names else "there is no run on this server")


@asynccontextmanager
async def _at(url: str, run: str, login: Login) -> AsyncIterator[Bus]:
    name = f"visitor-{uuid.uuid4().hex[:12]}"
    async with connect_url(
        url, run=run, name=name, lease_s=1.0, outage_timeout_s=_TIMEOUT_S, connect_timeout_s=_TIMEOUT_S, login=login
    ) as bus:
        yield bus


def _bound(listening: Listening) -> socket.socket:
    family = socket.AF_INET6 if ":" in listening.host else socket.AF_INET
    try:
        return socket.create_server((listening.host, listening.port), family=family)
    except (OSError, UnicodeError) as error:  # a name may be none
        why = getattr(error, "strerror", "") or str(error)
        raise ConfigError(
            f"cannot listen on {listening.host} port {listening.port} ({why}): choose another with --host and --port"
        ) from None


def _announce(source: Source, listener: socket.socket, token: str) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/{'?token=…' if token else ''}"
    say(f"the dashboard of {source.facts()['run']} is at {address} (Ctrl-C ends it; the run goes on)")
    if not token and not (host.startswith("127.") or host == "::1"):
        say("whoever reaches that port can read prompts and answers: --token-file FILE asks for a token")
