"""The line hears from the bus which samples died and which were revived.

Guarantee: what was revived before the call is not dead in the line after it, unless it has died again. The order of the two looks matters:
after a revival between them the line knows a death too few or a life too few, which the next look mends; in the other order it would take
the death of an earlier life for one of the later.
"""

from __future__ import annotations

from common.bus.base import Bus
from learner.line import Line


async def hear_of_deaths(bus: Bus, line: Line) -> None:
    """Joins the bus's dead letters into the line's dead."""
    lives = await bus.lives()
    letters = await bus.dead_letters()
    line.join({seq: letter.reason for seq, letter in letters.items()}, lives)
