"""The life of one role's process: connect, beat, work, drain, release. The same for producers, scorers and the learner.

SIGTERM or SIGINT sets `stopping`: the body leases nothing more and finishes what it holds; after `service.drain_s` it is cancelled. What is
held then goes back at once. A background task that fails ends the process.
Exit codes: 0 done · 2 a user's mistake or superseded (starting again does not help) · 1 anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import uvloop

from common import bus as buses
from common import log as logs
from common import metrics
from common.bus.acl import Role
from common.bus.base import Bus, Lease
from common.bus.login import metrics_token
from common.config import RunConfig, load_config
from common.errors import OtherSchema, RefluxError, Superseded, UserError
from common.leases import LeaseKeeper
from common.pulse import Pulse, Report

log = logging.getLogger(__name__)

LONG_WAIT_S = 5.0
_ALL_OF_IT = 0.95

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What a role's body works with."""

    role: str
    name: str
    config: RunConfig
    bus: Bus
    pulse: Pulse
    keeper: LeaseKeeper
    stopping: asyncio.Event


Body = Callable[[Worker], Awaitable[None]]


def role_parser(role: str) -> argparse.ArgumentParser:
    """--config and --set, to which a role adds its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {role}s" if role != "learner" else "python -m learner")
    parser.add_argument("--config", type=Path, required=True, help="the run's TOML")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="change one key")
    return parser


def run_role(role: Role, body: Body, argv: Sequence[str] | None = None) -> int:
    """Parses the arguments and serves; returns the exit code."""
    arguments = role_parser(role).parse_args(argv)
    return run_service(role, body, lambda: load_config(arguments.config, arguments.overrides))


def run_service(role: Role, body: Body, configure: Callable[[], RunConfig]) -> int:
    """Serves one role until it is done or told to stop; every RefluxError becomes one sentence on stderr."""
    logs.configure()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(role, configure(), body))
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the process's outermost boundary
        return _exit_code(role, _leaf(error))
    except KeyboardInterrupt:  # before it drained by signal: nothing was begun
        return EXIT_DONE
    return EXIT_DONE


def _exit_code(role: str, error: BaseException) -> int:
    if isinstance(error, RefluxError):
        print(f"reflux {role}: {error}", file=sys.stderr)  # noqa: T201 - the user's sentence
        return EXIT_USER if isinstance(error, UserError | Superseded | OtherSchema) else EXIT_FAILED
    if isinstance(error, asyncio.CancelledError):
        return EXIT_DONE
    traceback.print_exception(error)
    return EXIT_FAILED


async def serve(role: Role, config: RunConfig, body: Body) -> None:
    """Connects and runs `body` with its background tasks."""
    name = f"{role}-{uuid.uuid4().hex[:12]}"
    pulse = Pulse(role, name)
    async with buses.connect(config, name=name, role=role, overdue=partial(pulse.lose, "server")) as bus:
        section = config.bus
        keeper = LeaseKeeper(bus, lease_s=section.lease_s, work_deadline_s=section.work_deadline_s, hung=partial(_end, role))
        worker = Worker(role=role, name=name, config=config, bus=bus, pulse=pulse, keeper=keeper, stopping=asyncio.Event())
        with metrics.endpoint(pulse, config.service.metrics_host, config.service.metrics_port, metrics_token(config.service)):
            log.info("starts", extra={"role": role, "worker": name})
            await _live(worker, body)


async def _live(worker: Worker, body: Body) -> None:
    background: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            background.append(tasks.create_task(_beat(worker), name="heartbeat"))
            background.append(tasks.create_task(worker.keeper.run(), name="lease keeper"))
            work = tasks.create_task(_work(worker, body), name=worker.role)
            background.append(tasks.create_task(_drain(worker, work), name="drain"))
            await asyncio.wait([work])
            for task in background:
                task.cancel()
    finally:
        faulthandler.cancel_dump_traceback_later()
        await worker.keeper.release_all()


async def _work(worker: Worker, body: Body) -> None:
    await body(worker)


async def _drain(worker: Worker, work: asyncio.Task[None]) -> None:
    """Waits for a signal, then gives the body `service.drain_s`."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stopping.set)
    await worker.stopping.wait()
    log.info("drains", extra={"worker": worker.name, "holds": len(worker.keeper)})
    await asyncio.sleep(worker.config.service.drain_s)
    log.warning("the drain deadline has passed: what is held goes back", extra={"holds": len(worker.keeper)})
    work.cancel()


def _end(role: str, hanging: Sequence[Lease]) -> NoReturn:
    """At once, and without giving anything back: a thread that hangs cannot be ended otherwise, and whoever leases the entries next is to
    know that they ended a worker."""
    seqs = ", ".join(str(lease.seq) for lease in hanging[:10])
    print(f"reflux {role}: hangs on samples {seqs}, past bus.work_deadline_s: ends itself", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(EXIT_FAILED)


def _end_if_silent(seconds: float) -> None:
    """Ends the process, with its stacks on stderr, unless it is called again in time: also where the event loop itself hangs."""
    faulthandler.dump_traceback_later(seconds, exit=True)


async def _beat(worker: Worker) -> None:
    """Leaves a report every `heartbeat_s`; others see a worker whose reports stop as gone. A wait that lasts is logged too."""
    period, waits = worker.config.service.heartbeat_s, LongWaits()
    while True:
        _end_if_silent(worker.config.bus.work_deadline_s)
        report = worker.pulse.report()
        if cause := waits.news(report):
            log.info("waits", extra={"for": cause, "worker": worker.name})
        await worker.bus.beat(worker.name, report.encode(), 5 * period)
        await asyncio.sleep(period)


class LongWaits:
    """Says once what a worker has been waiting for through a whole `LONG_WAIT_S`, and again when that has changed."""

    def __init__(self) -> None:
        self._before: Report | None = None
        self._told = ""

    def news(self, report: Report) -> str:
        """The cause, where it is news; else empty."""
        before = self._before = self._before or report
        elapsed = report.at - before.at
        if elapsed < LONG_WAIT_S:
            return ""
        self._before, told = report, self._told
        lost = {cause: seconds - before.waiting.get(cause, 0.0) for cause, seconds in report.waiting.items()}
        self._told = next((cause for cause in lost if lost[cause] >= _ALL_OF_IT * elapsed), "")
        return self._told if self._told != told else ""


def _leaf(error: BaseException) -> BaseException:
    """The first cause in a tree of exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
