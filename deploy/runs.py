"""`reflux runs` and `reflux purge`: what lies on a server that several runs share, and what of it may go.

Guarantee: a purge takes the keys of the runs asked for and no other run's; one in which anybody lives only with --force.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.bus import connect_url
from common.bus.address import ADDRESS_FILE, read_address
from common.bus.login import Login, login_at, login_of
from common.bus.redis_client import RedisClient
from common.bus.runs import SharedRun, server_at, shared_runs, sweep
from common.errors import ConfigError
from deploy.target import open_target
from deploy.visit import say

_TIMEOUT_S = 3.0
_SECONDS = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Shared:
    """A server, and the run through which it was named, if it was."""

    url: str
    login: Login | None = None
    run: str = ""


def server_of(target: str, overrides: Sequence[str] = ()) -> Shared:
    """From an address, or from what names a run. Raises ConfigError."""
    if "://" in target:
        return Shared(target, login_at(target))
    config = open_target(Path(target), overrides)
    address = None if config.bus.url else read_address(config.directory / ADDRESS_FILE)
    url = config.bus.url or (address.url if address else "")
    if not url:
        raise ConfigError(f"the run {config.run.name} has a server of its own, which is not running: name a server's address instead")
    login = login_of(config.bus, config.run.name, "operator") if config.bus.url else None
    return Shared(url, login, config.run.name)


def list_runs(target: str, overrides: Sequence[str]) -> int:
    """`reflux runs`."""
    runs = asyncio.run(_runs(server_of(target, overrides)))
    table = Table(expand=False)
    for column in ("run", "state", "cursor", "live", "applied", "dead", "last entry", "bytes"):
        table.add_column(column, justify="left" if column in {"run", "state", "last entry"} else "right")
    for run in runs:
        counts = (f"{n:,}" for n in (run.cursor, run.live, run.applied, run.dead))
        table.add_row(run.name, "alive" if run.alive else "stopped", *counts, _ago(run.idle_s), f"{run.bytes:,}")
    console = Console()
    console.print(table) if console.is_terminal else Console(width=1000).print(table)
    say(f"{len(runs)} runs on this server")
    return 0


async def _runs(server: Shared) -> list[SharedRun]:
    async with server_at(server.url, _TIMEOUT_S, server.login) as client:
        return await shared_runs(client)


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "none"
    unit = next((unit for unit in ("d", "h", "m") if seconds >= _SECONDS[unit]), "")
    return f"{seconds / _SECONDS[unit]:.0f}{unit} ago" if unit else f"{seconds:.0f}s ago"


def purge(target: str, overrides: Sequence[str], names: Sequence[str], *, older_than: str, force: bool) -> int:
    """`reflux purge`."""
    server = server_of(target, overrides)
    if bool(names) and bool(older_than):
        raise ConfigError("name runs, or say --older-than, not both")
    chosen = names or ((server.run,) if server.run and not older_than else ())
    if not chosen and not older_than:
        raise ConfigError("say which runs: their names (`reflux runs` lists them), or --older-than 7d")
    return asyncio.run(_purge(server, chosen, _age(older_than), force=force))


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+)([mhd])", text) if text else None
    if text and match is None:
        raise ConfigError(f"--older-than {text} is no age: write 30m, 12h or 7d")
    return int(match[1]) * _SECONDS[match[2]] if match else 0.0


async def _purge(server: Shared, names: Sequence[str], age_s: float, *, force: bool) -> int:
    async with server_at(server.url, _TIMEOUT_S, server.login) as client:
        known = {run.name: run for run in await shared_runs(client)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigError(f"there is no run {unknown[0]} on this server: `reflux runs` lists them; nothing was removed")
        old = [run.name for run in known.values() if not run.alive and run.idle_s is not None and run.idle_s >= age_s]
        chosen = names or old
        for name in chosen:
            await _remove(client, server, known[name], force=force)
    say(f"{len(chosen)} runs were removed")
    return 0


async def _remove(client: RedisClient, server: Shared, run: SharedRun, *, force: bool) -> None:
    async with connect_url(server.url, run=run.name, name="purge", lease_s=1.0, outage_timeout_s=_TIMEOUT_S, login=server.login) as bus:
        alive = await bus.purge(force)
    if alive:
        raise ConfigError(f"the run {run.name} is alive ({', '.join(alive)}): stop it first, or purge it with --force")
    await sweep(client, run.name)
    say(f"{run.name}: {run.bytes:,} bytes freed")
