"""`reflux preflight`: every check is made and shown, also after one that failed; nothing of the run begins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from rich.console import Console
from rich.table import Table

from common.config import RunConfig
from deploy.preflight.finding import Check, Finding, found_by
from deploy.preflight.judged import check_better
from deploy.preflight.models import check_prompts, check_reading, check_student
from deploy.preflight.services import check_bus, check_disk, check_store, check_students, check_teacher
from deploy.preflight.start import check_names, preflight
from learner.collapse import known_collapse

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def show_preflight(config: RunConfig, console: Console) -> int:
    """The exit code: 1 where something is wrong."""
    findings = asyncio.run(all_findings(config))
    console.print(table_of(findings))
    wrong = [finding for finding in findings if finding.state == "error"]
    console.print(f"{len(wrong)} errors: mend them before the run" if wrong else "ready to run", highlight=False)
    return 1 if wrong else 0


def table_of(findings: list[Finding]) -> Table:
    """One row per finding."""
    table = Table(title="preflight", title_justify="left")
    table.add_column("what")
    table.add_column("")
    table.add_column("found", overflow="fold")
    for finding in findings:
        table.add_row(finding.subject, f"[{_COLOURS[finding.state]}]{finding.state}", finding.says)
    return table


async def all_findings(config: RunConfig) -> list[Finding]:
    """One check after the other; without the models' directories there is nothing more to ask."""
    first = await found_by("files", partial(_check_files, config))
    if any(finding.state == "error" for finding in first):
        return first
    return first + [finding for subject, check in _checks(config) for finding in await found_by(subject, check)]


async def _check_files(config: RunConfig) -> list[Finding]:
    await asyncio.to_thread(preflight, config)
    found = [Finding("files", "ok", "models, prompts and directories are there")]
    warning = known_collapse(config)
    return [*found, Finding("loss", "warning", warning)] if warning else found


def _checks(config: RunConfig) -> Iterator[tuple[str, Check]]:
    yield "names", partial(_check_names, config)
    yield "prompts", partial(check_prompts, config)
    yield "learner", partial(check_student, config)
    yield "disk", partial(check_disk, config)
    yield "server", partial(check_bus, config)
    yield "weight store", partial(check_store, config)
    if config.producer.kind == "sglang":
        yield "student", partial(check_students, config)
    for name in config.teachers:
        yield f"teacher {name}: tokens", partial(check_reading, config, name)
        yield f"teacher {name}", partial(check_teacher, config, name)
        yield f"teacher {name}: better", partial(check_better, config, name)


async def _check_names(config: RunConfig) -> list[Finding]:
    await asyncio.to_thread(check_names, config)
    return [Finding("names", "ok", "architecture, loss and verifier are known")]
