"""The bus is made to agree with the surviving line, whatever became of it: empty, rolled back, or ahead of a line that was lost.

Guarantees: afterwards cursor = live + applied + dead (P6) and every number below the cursor is in exactly one of the three; nothing applied
is ever sampled again, nothing lost stays lost (P2). To be called while nobody admits, settles or holds anything.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from common.bus.base import Bus
from common.codec import encode
from common.messages import Version, WeightManifest
from learner.deaths import hear_of_deaths
from learner.feeder import PromptSource
from learner.line import Line

_CHUNK = 512
_log = logging.getLogger(__name__)


async def reconcile(
    bus: Bus, line: Line, prompts: PromptSource, *, min_version: Version, manifest: WeightManifest | None, keep: int
) -> str:
    """Returns the incarnation that agrees with the line. `manifest`: the newest publication, said again where the log has lost it."""
    while True:
        before = (await bus.state()).incarnation
        await _agree(bus, line)
        if manifest is not None:
            await _publish_again(bus, line.term, manifest, keep)
        readmitted = await _readmit(bus, line, prompts, min_version)
        after = (await bus.state()).incarnation
        _log.info("reconciled", extra={"cursor": line.cursor, "applied": line.applied, "dead": len(line.dead), "readmitted": readmitted})
        if after == before:
            await bus.reconciled(line.term, after)
            return after


async def _agree(bus: Bus, line: Line) -> None:
    await hear_of_deaths(bus, line)
    line.cursor = max(line.cursor, await bus.reconcile(line.term, line.cursor, line.applied, line, line.dead, line.lives))


async def _publish_again(bus: Bus, term: int, manifest: WeightManifest, keep: int) -> None:
    payload = encode(manifest)
    if all(said != payload for _, said in await bus.weights_after("0", 0)):
        await bus.publish(term, payload, keep)


async def _readmit(bus: Bus, line: Line, prompts: PromptSource, min_version: Version) -> int:
    missing: Sequence[int] = line.missing(await bus.live())
    readmitted = 0
    for start in range(0, len(missing), _CHUNK):
        tickets = [(seq, encode(prompts.ticket(seq, 0, min_version))) for seq in missing[start : start + _CHUNK]]
        readmitted += await bus.readmit(line.term, tickets)
    return readmitted
