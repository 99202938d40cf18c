"""The seam to whatever samples with the student."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from common.messages import Completion, Ticket, Version, WeightManifest


class Engine(Protocol):
    """Samples many tickets at once. Calls come from one event loop; the maths runs beside it."""

    @property
    def version(self) -> Version:
        """The weights that the next sampled token will come from."""

    @property
    def wanted(self) -> int:
        """How many more tickets it can use now without letting them queue long; ≤ 0: none."""

    async def generate(self, ticket: Ticket) -> Completion:
        """Samples one answer. Raises Rejected where the ticket cannot be sampled (too long, ids outside the vocabulary)."""

    async def update_weights(self, manifest: WeightManifest, directory: Path) -> None:
        """Goes over to the weights of a verified local directory between two decode steps; requests in flight go on with them."""

    async def aclose(self) -> None:
        """Stops; pending `generate` calls are cancelled."""
