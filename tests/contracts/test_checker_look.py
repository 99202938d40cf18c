"""What the audit sees on a real server is what the bus has written there; and when it may insist on it."""

from __future__ import annotations

import numpy as np
import pytest
from bus_media import ROLLOUTS, Medium, start_run, tickets

from common.bus.base import SCORED, TICKETS, Burial, Move
from common.codec import encode
from common.messages import Version, WeightManifest
from deploy.checker import NoAnswer, look_at

REAL = pytest.mark.parametrize("medium_url", ["valkey", "redis-6.2"], indirect=True)


@REAL
async def test_a_look_sees_ledger_places_letters_and_versions(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 4)
    held = await bus.lease([TICKETS], 3, 0)
    await bus.hand_off([Move(held[0], ROLLOUTS, np.arange(9, dtype=np.int32).tobytes())])
    await bus.bury([Burial(held[1], "why, she said:\n2 3 \x00x")])
    await bus.hand_off([Move(held[2], SCORED, b"scored")])
    await bus.settle(1, await bus.lease([SCORED], 1, 0))
    for step in (1, 2):
        await bus.publish(1, encode(WeightManifest(Version(1, step), "full", "d", (), {})), 5)
    seen = look_at(medium.url, medium.run)
    live = await bus.live()
    assert (seen.term, seen.cursor, seen.applied, seen.learner, seen.reconciled) == (1, 4, 1, True, False)
    assert {seq: (one.topic, one.entry, one.attempt) for seq, one in live.items()} == seen.live
    assert seen.dead == {1: (0, "why, she said:\n2 3 \x00x")}
    assert (seen.adrift, seen.weights) == (frozenset(), ((1, 1), (1, 2)))
    await bus.bare._client.command("XDEL", f"reflux:{{{medium.run}}}:{ROLLOUTS}", live[0].entry)
    assert look_at(medium.url, medium.run).adrift == {0}


@REAL
async def test_a_server_counts_as_reconciled_until_it_is_lost_or_the_term_is_over(medium: Medium) -> None:
    bus, next_one = await medium.bus(), await medium.bus()

    async def mark(term: int, incarnation: str = "") -> bool:
        await bus.reconciled(term, incarnation or (await bus.state()).incarnation)
        return look_at(medium.url, medium.run).reconciled

    await bus.claim(1, "learner", 30.0, False)
    await bus.reconcile(1, 0, 0, [], {}, {})
    assert not look_at(medium.url, medium.run).reconciled
    assert not await mark(1, "another:incarnation")
    assert await mark(1)
    await bus.admit(1, 0, tickets(0))
    assert look_at(medium.url, medium.run).reconciled
    await bus.reconcile(1, 1, 0, [], {}, {})
    assert not look_at(medium.url, medium.run).reconciled
    assert await mark(1)
    await next_one.claim(2, "successor", 30.0, True)
    assert not look_at(medium.url, medium.run).reconciled


async def test_a_server_that_does_not_answer_is_said_to_be_so() -> None:
    with pytest.raises(NoAnswer, match=r"refused|Connection"):
        look_at("redis://127.0.0.1:1/0", "r")
