"""What only somebody outside can mend (a full disk, a full server, a store that is away): the role waits, says why, and goes on by itself.

Guarantee (P7): while it lasts the heartbeat has the cause and the sentence, so `reflux status` shows them. Leases are renewed meanwhile by
their keeper. Only for calls that change nothing when they fail.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TypeVar

from common.pulse import Pulse

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


async def until_mended(pulse: Pulse, cause: str, call: Callable[[], Awaitable[T]], *obstacles: type[Exception]) -> T:
    """The call's result, however long `obstacles` keep it from coming; any other error comes out."""
    pause = 0.0
    with ExitStack() as waiting:
        while True:
            try:
                result = await call()
            except obstacles as error:
                if not pause:
                    waiting.enter_context(pulse.waiting(cause, why=str(error)))
                    log.error("waits", extra={"for": cause, "reason": str(error)})
                pause = min(_LONGEST_PAUSE_S, 2 * pause or _FIRST_PAUSE_S)
            else:
                if pause:
                    log.info("goes on", extra={"waited_for": cause})
                return result
            await asyncio.sleep(pause)
