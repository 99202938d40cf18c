"""A run on SGLang servers asks them at every start: a wrong one costs seconds then, and later all that was sampled or scored with it.

One that is not there yet is said and waited for by who needs it. What takes minutes or loads models is left to `reflux preflight`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

from common.config import RunConfig
from common.errors import ConfigError
from deploy.preflight.finding import Check, Finding, found_by

_AT_MOST_S = 30.0


async def ask_servers(config: RunConfig, say: Callable[[str], None]) -> None:
    """Says the warnings, and who is away; raises ConfigError with the first error."""
    found = [finding for subject, check in _checks(config) for finding in await _in_time(subject, check)]
    for finding in found:
        if finding.state == "error" and not finding.away:
            raise ConfigError(f"{finding.subject}: {finding.says}; --skip-preflight starts all the same")
    for finding in found:
        if finding.state != "ok":
            say(f"warning: {finding.subject}: {finding.says}")


async def _in_time(subject: str, check: Check) -> list[Finding]:
    try:
        async with asyncio.timeout(_AT_MOST_S):
            return await found_by(subject, check)
    except TimeoutError:
        return [Finding(subject, "error", f"no answer within {_AT_MOST_S:g} s", away=True)]


def _checks(config: RunConfig) -> Iterator[tuple[str, Check]]:
    served = [name for name, teacher in config.teachers.items() if teacher.kind == "sglang"]
    if not served and config.producer.kind != "sglang":
        return  # the roles compute, and look at their own models
    from deploy.preflight.models import check_reading
    from deploy.preflight.services import check_students, check_teacher_answers

    if config.producer.kind == "sglang":
        yield "student", partial(check_students, config)
    for name in served:
        yield f"teacher {name}: tokens", partial(check_reading, config, name)
        yield f"teacher {name}", partial(check_teacher_answers, config, name)
