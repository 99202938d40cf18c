"""The rollouts of a run that may still grow, read from its journal as it grows, in a thread beside the server's loop."""

from __future__ import annotations

import asyncio
from typing import Any  # JSON values

from common.config import RunConfig
from common.errors import RefluxError
from common.messages import Version
from deploy.report.record import dead_letters
from deploy.report.rollouts import Speller, describe, headline
from deploy.report.shelf import Kept, Selection, Shelf, kept_of
from learner.directory import RunDirectory
from learner.line import Line
from learner.surviving import newest_line, records_of

_SELECTION = Selection(steps=40, per_step=6, tokens=400_000)
_PAUSE_S = 2.0


class Shelved:
    """`run` is a task; what it found may be read at any time."""

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        self._config = config
        self._directory = directory
        self._shelf = Shelf(_SELECTION)
        self._lineage: list[Version] = []
        self._speller: Speller | None = None
        self._kept: dict[tuple[int, int], Kept] = {}
        self._headlines: list[dict[str, Any]] = []
        self._edition = 0
        self._complaint = ""
        self.dead: dict[str, Any] | None = None
        """As the newest checkpoint knows them."""

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.to_thread(self._refresh)
            await asyncio.sleep(_PAUSE_S)

    def document(self, edition: int) -> dict[str, Any]:
        """The list, if it is another than the page has."""
        known = edition == self._edition
        return {"edition": self._edition, "complaint": self._complaint} | ({} if known else {"rollouts": self._headlines})

    async def rollout(self, step: int, seq: int) -> dict[str, Any] | None:
        """Also one that has left the list since; None where the surviving line has none such."""
        speller = self._speller
        if speller is None:
            return None
        kept = self._kept.get((step, seq)) or await asyncio.to_thread(self._from_journal, step, seq)
        return None if kept is None else describe(kept, speller)

    def _from_journal(self, step: int, seq: int) -> Kept | None:
        line = newest_line(self._directory)
        record = next(records_of(self._directory, line, step - 1), None) if line else None
        return kept_of(record, seq) if record and record.step == step else None

    def _refresh(self) -> None:
        line = newest_line(self._directory)
        if line is None:
            return
        self.dead = dead_letters(line)
        try:
            self._read(line)
        except RefluxError as error:
            self._complaint = str(error)

    def _read(self, line: Line) -> None:
        self._start_over_if_another(line)
        before = self._shelf.last_step
        self._shelf.take(records_of(self._directory, line, before))
        if self._shelf.last_step == before and self._edition:
            return
        if self._speller is None:
            self._speller = Speller(self._config)
            self._complaint = self._speller.complaint
        kept = list(self._shelf)
        self._headlines = [headline(each, self._speller) for each in kept]
        self._kept = {each.key: each for each in kept}
        self._edition += 1

    def _start_over_if_another(self, line: Line) -> None:
        """A resumed learner goes on from its last checkpoint; what a dead term journaled beyond that is not in the model."""
        lineage = list(line.lineage)
        if lineage[: len(self._lineage)] != self._lineage:
            self._shelf = Shelf(_SELECTION)
        elif len(lineage) > len(self._lineage):
            self._shelf.forget(lineage[len(self._lineage)].step)
        self._lineage = lineage
