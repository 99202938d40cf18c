"""A learner's life has a number of its own, whatever else writes to the same disk or server.

Guarantee: the directory terms/term000007 is created exclusively, so no two learners that see this disk share a term; the number is above
everything seen in Redis, checkpoints, journal and weight store, so no file or version of another life is ever overwritten. Redis then
fences all lower terms.
"""

from __future__ import annotations

from common.bus.base import Bus
from common.errors import Superseded
from common.weights.base import WeightStore
from learner import checkpoint, journal
from learner.directory import RunDirectory
from learner.disk import needs_room, sync_directory, term_number

_TRIES = 5


async def claim_term(bus: Bus, store: WeightStore, directory: RunDirectory, *, owner: str, lease_s: float, take_over: bool) -> int:
    """The new term. Raises LearnerActive while another learner lives, unless `take_over`, and DiskFull, StoreAway."""
    for _ in range(_TRIES):
        term = _reserve(directory, 1 + await _highest(bus, store, directory))
        try:
            await bus.claim(term, owner, lease_s, take_over)
        except Superseded:  # somebody was faster between the look and the claim
            continue
        return term
    raise Superseded("other learners keep taking over this run: stop them")


async def _highest(bus: Bus, store: WeightStore, directory: RunDirectory) -> int:
    seen = [(await bus.state()).term]
    seen += [version.term for version in await store.versions()]
    seen += [version.term for version in checkpoint.versions(directory.checkpoints)]
    seen += journal.terms(directory.journal)
    seen += [term_number(path) for path in directory.terms.glob("term*")]
    return max(seen)


def _reserve(directory: RunDirectory, term: int) -> int:
    with needs_room(directory.root, "the new term"):
        directory.terms.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                (directory.terms / f"term{term:06}").mkdir()
            except FileExistsError:
                term += 1
                continue
            sync_directory(directory.terms)
            return term
