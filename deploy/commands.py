"""What each command of `reflux` does; returns the exit code, raises RefluxError with the sentence to print."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from common import bus as buses
from common.bus.address import ADDRESS_FILE, read_address
from common.bus.login import login_of
from common.config import RunConfig
from common.config.run import without_password
from common.errors import BusError, ConfigError
from deploy.lock import is_held
from deploy.result import Result, result_table
from deploy.visit import connected
from learner.collapse import known_collapse
from learner.directory import RunDirectory

if TYPE_CHECKING:
    from deploy.checker import Look

_UNWRAPPED = 1000
"""Columns in a pipe: whoever reads it there wants whole lines."""


def run(config: RunConfig, target: Path, *, fresh: bool, take_over: bool, dry_run: bool, skip_preflight: bool = False) -> int:
    """`reflux run`."""
    from deploy.local import run_async
    from deploy.screen import open_screen

    console = Console()
    if dry_run:
        return _dry_run(config, console)
    was_finished = not fresh and RunDirectory(config.directory).result.exists()
    with open_screen(console, config.run.name, config.learner.steps) as screen:
        result = asyncio.run(run_async(config, screen=screen, fresh=fresh, take_over=take_over, skip_preflight=skip_preflight))
    _tell(result, f"reflux run {target}", was_finished=was_finished, console=console)
    return 0


def up(config: RunConfig, target: Path, *, ray: str, fresh: bool, take_over: bool = False, skip_preflight: bool = False) -> int:
    """`reflux up --ray`."""
    from deploy.local import run_async
    from deploy.screen import open_screen

    try:
        from deploy import cluster
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed here: pip install 'reflux[ray]'") from None
    console = Console()
    was_finished = not fresh and RunDirectory(config.directory).result.exists()
    with (
        cluster.cluster(ray, config, lambda text: _say(console, text)) as (placed, elsewhere),
        open_screen(console, config.run.name, config.learner.steps) as screen,
    ):
        running = run_async(placed, screen=screen, fresh=fresh, take_over=take_over, skip_preflight=skip_preflight, elsewhere=elsewhere)
        result = asyncio.run(running)
    _tell(result, f"reflux up --ray {ray} {target}", was_finished=was_finished, console=console)
    return 0


def _tell(result: Result, command: str, *, was_finished: bool, console: Console) -> None:
    directory = RunDirectory(result.directory)
    if not result.finished:
        _say(console, f"the run has stopped and is kept in {directory.root}: `{command}` goes on where it was")
        return
    console.print(result_table(directory, result.values))
    if was_finished:
        _say(console, f"this run is finished: `{command} --fresh` begins anew (the old run is moved aside)")


def _dry_run(config: RunConfig, console: Console) -> int:
    from deploy.preflight import preflight
    from deploy.roles import role_specs

    preflight(config, thorough=True)
    if warning := known_collapse(config):
        _say(console, f"warning: {warning}")
    if config.bus.url:
        asyncio.run(_answers(config))
    _say(console, f"the configuration is fine; {config.directory} would be used")
    _say(console, f"server: {without_password(config.bus.url) or 'embedded'}; processes: {', '.join(s.name for s in role_specs(config))}")
    size = config.window * config.largest_sample_bytes
    _say(
        console,
        f"{config.learner.steps} steps of {config.learner.batch_size} samples, at most {config.window} in flight ({size:,} bytes at worst)",
    )
    return 0


async def _answers(config: RunConfig) -> None:
    async with buses.connect(config, name=_name(), role="observer") as bus:
        await bus.state()


def preflight(config: RunConfig) -> int:
    """`reflux preflight`: exit code 1 where something is wrong."""
    from deploy.preflight.command import show_preflight

    return show_preflight(config, Console(width=None if sys.stdout.isatty() else _UNWRAPPED))


def status(config: RunConfig) -> int:
    """`reflux status`."""
    directory = RunDirectory(config.directory)
    console = Console(width=None if sys.stdout.isatty() else _UNWRAPPED)
    values = directory.finished()
    if values is not None:
        console.print(result_table(directory, values))
        return 0
    if not directory.root.exists():
        raise ConfigError(f"there is no run in {directory.root}: start it with `reflux run`")
    try:
        asyncio.run(_show(config, console))
    except BusError as error:
        _say(console, f"{_state(config)} ({error}); `reflux run` goes on where it was")
    return 0


def _state(config: RunConfig) -> str:
    """Of a run whose server does not answer; roles on other hosts may live without a supervisor here."""
    if is_held(config.directory):
        return "a supervisor lives, but its server does not answer"
    return "no supervisor lives here, and the server does not answer" if config.bus.url else "the run is stopped"


async def _show(config: RunConfig, console: Console) -> None:
    from deploy.snapshot import take
    from deploy.table import live_view

    async with connected(config, "observer") as bus:
        before = await take(bus)
        await asyncio.sleep(2 * config.service.heartbeat_s)
        console.print(live_view(config.run.name, config.learner.steps, before, await take(bus)))


def audit(config: RunConfig) -> int:
    """`reflux audit`: exit code 1 where the audit fails."""
    from deploy.checker import audit as prove

    _must_hold_a_run(config)
    report = prove(config.directory, lambda: _look(config))
    _say(Console(), str(report))
    return 0 if report.passed else 1


def _must_hold_a_run(config: RunConfig) -> None:
    if not RunDirectory(config.directory).config.exists():
        raise ConfigError(f"{config.directory} holds no run: give the directory runs/NAME or the run's TOML")


def _look(config: RunConfig) -> Look:
    from deploy.checker import NoAnswer, look_at

    embedded = read_address(config.directory / ADDRESS_FILE)
    url = config.bus.url or (embedded.url_of(config.run.name, "observer") if embedded else "")
    if not url:
        raise NoAnswer("it does not run")
    return look_at(url, config.run.name, login_of(config.bus, config.run.name, "observer").options())


def replay(config: RunConfig) -> int:
    """`reflux replay`: exit code 1 where a step comes out otherwise than it did."""
    from deploy.replay import show_replay

    return 0 if show_replay(config, Console()) else 1


def export(config: RunConfig, out: Path | None) -> int:
    """`reflux export`."""
    from deploy.export import export_rollouts

    _must_hold_a_run(config)
    file = out or config.directory / "rollouts.parquet"
    count = export_rollouts(config, file)
    _say(Console(), f"{count:,} rollouts in {file}")
    return 0


def report(config: RunConfig, out: Path | None) -> int:
    """`reflux report`."""
    from deploy.report.write import write_report

    file = out or config.directory / "report.html"
    count = write_report(config, file)
    _say(Console(), f"{file} shows the run and {count} of its rollouts, token by token: open it in a browser")
    return 0


def trace(config: RunConfig, seqs: Sequence[int], out: Path | None) -> int:
    """`reflux trace`."""
    from deploy.trace import write_trace

    _must_hold_a_run(config)
    file = out or config.directory / "trace.json"
    count = write_trace(config, seqs, file)
    _say(Console(), f"{file} shows the lives of {count} samples: open it in https://ui.perfetto.dev or chrome://tracing")
    return 0


def acl(config: RunConfig) -> int:
    """`reflux acl`: the file on stdout, what to do with it on stderr."""
    from deploy.users import acl_file

    lines, made = acl_file(config)
    print("\n".join(lines))
    told = Console(stderr=True)
    for path in made:
        _say(told, f"made {path}")
    _say(told, "keep it as the server's aclfile (one `user default off` is enough for several runs), with a line for your administrator")
    return 0


def pause(config: RunConfig, *, paused: bool) -> int:
    """`reflux pause` and `reflux resume`."""
    asyncio.run(_pause(config, paused=paused))
    _say(Console(), "no new samples are admitted; what is in flight goes on" if paused else "samples are admitted again")
    return 0


async def _pause(config: RunConfig, *, paused: bool) -> None:
    async with connected(config) as bus:
        await bus.pause(paused)


def _name() -> str:
    return f"visitor-{uuid.uuid4().hex[:12]}"


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)
