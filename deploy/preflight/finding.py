"""What a check found. A check that raises a named error has found one, and the others go on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from common.errors import BusUnreachable, RefluxError, ServersUnreachable, StoreAway

State = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """One line of the table."""

    subject: str
    state: State
    says: str
    away: bool = False
    """An error that may pass by itself: what was asked is not there now."""


Check = Callable[[], Awaitable[list[Finding]]]


async def found_by(subject: str, check: Check) -> list[Finding]:
    """What `check` finds; where it raises one of our errors, that sentence."""
    try:
        return await check()
    except* RefluxError as group:
        error = _first(group)
    return [Finding(subject, "error", str(error), away=isinstance(error, BusUnreachable | ServersUnreachable | StoreAway))]


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
