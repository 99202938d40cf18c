"""Answers seen on the server while they wait for the learner, where the run's directory is not at hand.

Guarantees: only looks, at a few entries at a time and not often; never keeps more than the newest few; what cannot be read is said and
passed over. A rollout stands under the step of the weights that sampled its last token.
"""

from __future__ import annotations

import time
from typing import Any  # JSON values

from common.bus.base import SCORED, Bus
from common.codec import decode
from common.config import RunConfig
from common.errors import RefluxError
from common.messages import ScoredRollout
from deploy.report.rollouts import Speller, describe, headline
from deploy.report.shelf import Kept

_AT_ONCE = 8
_PAUSE_S = 2.0
_MOST = 64
_MOST_TOKENS = 200_000


class Waiting:
    """`look` is called with the bus again and again."""

    def __init__(self, config: RunConfig | None) -> None:
        self._config = config
        self._speller: Speller | None = None
        self._kept: dict[tuple[int, int], Kept] = {}
        self._edition = 0
        self._complaint = ""
        self._again_at = 0.0

    async def look(self, bus: Bus) -> None:
        """At the oldest that wait."""
        if time.monotonic() < self._again_at:
            return
        self._again_at = time.monotonic() + _PAUSE_S
        for payload in await bus.glance(SCORED, _AT_ONCE):
            self._take(bytes(payload))
        while len(self._kept) > 1 and (len(self._kept) > _MOST or sum(kept.tokens for kept in self._kept.values()) > _MOST_TOKENS):
            self._kept.pop(next(iter(self._kept)))

    def _take(self, payload: bytes) -> None:
        if self._speller is None:
            self._speller = Speller(self._config)
            self._complaint = self._speller.complaint
        try:
            scored = decode(payload, ScoredRollout)
        except RefluxError as error:
            self._complaint = str(error)
            return
        assert isinstance(scored, ScoredRollout)
        if not scored.scores or not (versions := scored.rollout.completion.versions):
            return
        kept = Kept(versions[-1].term, versions[-1].step, scored)
        if kept.key not in self._kept:
            self._kept[kept.key] = kept
            self._edition += 1

    def document(self, edition: int) -> dict[str, Any]:
        """The list, if it is another than the page has."""
        said = {"edition": self._edition, "complaint": self._complaint}
        if edition == self._edition or self._speller is None:
            return said
        return said | {"rollouts": [headline(kept, self._speller) for kept in self._kept.values()]}

    def rollout(self, step: int, seq: int) -> dict[str, Any] | None:
        """None for one that has not been seen, or not lately."""
        kept = self._kept.get((step, seq))
        return None if kept is None or self._speller is None else describe(kept, self._speller)
