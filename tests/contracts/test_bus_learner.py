"""Admission, settling, terms and reconciliation, on every medium."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from bus_media import Medium, advance, seqs, start_run, tickets

from common.bus.base import EVAL, SCORED, TICKETS, Burial, Move, Retry
from common.errors import LearnerActive, Superseded


async def test_admission_is_a_compare_and_set_on_the_cursor(medium: Medium) -> None:
    bus = await medium.bus()
    await bus.claim(1, "learner", 30.0, False)
    assert await bus.admit(1, 0, tickets(0, 1, 2)) == 3
    assert await bus.admit(1, 0, tickets(0, 1, 2)) == 3
    assert await bus.admit(1, 5, tickets(5)) == 3
    assert await bus.admit(1, 3, []) == 3
    assert await bus.admit(1, 3, tickets(3)) == 4
    assert seqs(await bus.lease([TICKETS], 10, 0)) == [0, 1, 2, 3]


async def test_a_large_admission_goes_in_pieces(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 1000)
    assert await bus.admit(1, 0, tickets(*range(1000))) == 1000
    assert seqs(await bus.lease([TICKETS], 2000, 0)) == list(range(1000))


async def test_admission_skips_the_dead(medium: Medium) -> None:
    bus = await medium.bus()
    await bus.claim(1, "learner", 30.0, False)
    assert await bus.reconcile(1, 2, 1, [0], {1: "dead before"}, {}) == 2
    assert await bus.admit(1, 2, tickets(2)) == 3
    await bus.bare.reconcile(1, 3, 1, [], {4: "known from a checkpoint"}, {})
    assert await bus.admit(1, 3, tickets(3, 4, 5)) == 6
    assert seqs(await bus.lease([TICKETS], 10, 0)) == [2, 3, 5]


async def test_readmission_adds_only_what_is_neither_live_nor_dead(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 3)
    (held,) = await bus.lease([TICKETS], 1, 0)
    await bus.bury([Burial(held, "poison")])
    assert await bus.readmit(1, tickets(0, 1, 2)) == 0
    await bus.bare.reconcile(1, 5, 0, [], {}, {})
    assert await bus.readmit(1, tickets(0, 1, 2, 3, 4)) == 2
    assert await bus.readmit(1, tickets(3, 4)) == 0
    assert sorted(seqs(await bus.lease([TICKETS], 10, 0))) == [1, 2, 3, 4]


async def test_readmission_raises_the_cursor(medium: Medium) -> None:
    bus = await medium.bus()
    await bus.claim(1, "learner", 30.0, False)
    assert await bus.readmit(1, tickets(0, 1)) == 2
    assert (await bus.state()).cursor == 2
    assert await bus.admit(1, 2, tickets(2)) == 3


async def test_settling_counts_each_sample_once(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 4)
    scored = await advance(bus, TICKETS, SCORED, 3)
    assert await bus.settle(1, [*scored, scored[0]]) == 3
    assert await bus.settle(1, scored) == 0
    state = await bus.state()
    assert (state.applied, state.live, state.backlog[SCORED]) == (3, 1, 0)


async def test_settling_is_a_no_op_where_live_names_another_entry(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 2)
    scored = await advance(bus, TICKETS, SCORED)
    await bus.retry([Retry(scored[0], b"again", "stale")], 3)
    assert await bus.settle(1, scored) == 1
    assert set(await bus.live()) == {0}
    assert (await bus.state()).backlog[TICKETS] == 1


async def test_discarding_leaves_what_live_names_unless_it_is_dead(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 2)
    scored = await advance(bus, TICKETS, SCORED)
    await bus.discard(1, scored)
    assert set(await bus.live()) == {0, 1}
    await bus.settle(1, scored[:1])
    await bus.discard(1, scored[:1])
    assert (await bus.state()).backlog[SCORED] == 1


async def test_a_lower_term_is_refused_everywhere(medium: Medium) -> None:
    old, new = await medium.bus(), await medium.bus()
    await start_run(old, 2)
    scored = await advance(old, TICKETS, SCORED)
    await new.claim(3, "successor", 30.0, True)
    before = await new.state()
    calls = [
        old.admit(1, 2, tickets(2)),
        old.readmit(1, tickets(2)),
        old.settle(1, scored),
        old.discard(1, scored),
        old.publish(1, b"manifest", 3),
        old.reconcile(1, 9, 9, [], {}, {}),
        old.ask(1, EVAL, tickets(0)),
        old.clear(1, EVAL),
        old.answer(1, scored),
        old.hold(1, "learner", 30.0),
        old.claim(2, "learner", 30.0, True),
        old.claim(3, "learner", 30.0, True),
    ]
    for call in calls:
        with pytest.raises(Superseded, match="higher term"):
            await call
    after = await new.state()
    assert (after.cursor, after.applied, after.term, after.backlog) == (before.cursor, before.applied, 3, before.backlog)
    assert await new.weights_after("0", 0) == []


async def test_a_higher_term_is_remembered(medium: Medium) -> None:
    bus = await medium.bus()
    await bus.claim(1, "learner", 30.0, False)
    await bus.admit(4, 0, tickets(0))
    assert (await bus.state()).term == 4
    with pytest.raises(Superseded):
        await bus.admit(3, 1, tickets(1))


async def test_a_second_learner_is_refused_while_the_first_lives(medium: Medium) -> None:
    first, second = await medium.bus(), await medium.bus()
    await first.claim(1, "first", 30.0, False)
    with pytest.raises(LearnerActive, match=r"first.*--take-over"):
        await second.claim(2, "second", 30.0, False)
    await first.hold(1, "first", 0.2)
    await first.hold(1, "first", 30.0)
    await asyncio.sleep(0.3)
    with pytest.raises(LearnerActive):
        await second.claim(2, "second", 30.0, False)
    assert (await first.state()).term == 1
    await first.hold(1, "first", 0.1)
    await asyncio.sleep(0.2)
    await second.claim(2, "second", 30.0, False)


async def test_taking_over_stops_the_first_learner(medium: Medium) -> None:
    first, second = await medium.bus(), await medium.bus()
    await first.claim(1, "first", 30.0, False)
    await second.claim(2, "second", 30.0, True)
    with pytest.raises(Superseded):
        await first.hold(1, "first", 30.0)
    with pytest.raises(Superseded, match="second"):
        await first.hold(2, "first", 30.0)
    await first.resign(1, "first")
    with pytest.raises(LearnerActive, match="second"):
        await first.claim(3, "third", 30.0, False)
    await second.hold(2, "second", 30.0)


async def test_a_holder_of_a_lower_term_that_a_rollback_brought_back_supersedes_nobody(medium: Medium) -> None:
    dead, surviving = await medium.bus(), await medium.bus()
    await dead.claim(1, "dead", 30.0, False)  # as the rollback left it: the survivor's own claim is undone
    await surviving.admit(2, 0, tickets(0))
    await surviving.hold(2, "surviving", 30.0)
    with pytest.raises(LearnerActive, match="surviving"):
        await dead.claim(3, "third", 30.0, False)


async def test_a_learner_that_resigned_makes_room_at_once(medium: Medium) -> None:
    bus = await medium.bus()
    await bus.claim(1, "first", 30.0, False)
    await bus.resign(1, "first")
    await bus.claim(2, "second", 30.0, False)


async def test_the_weights_log_is_read_from_any_entry_and_keeps_the_last(medium: Medium) -> None:
    bus = await medium.bus()
    await bus.claim(1, "learner", 30.0, False)
    entries = [await bus.publish(1, b"version %d" % n, 3) for n in range(5)]
    assert [payload for _, payload in await bus.weights_after("0", 0)] == [b"version 2", b"version 3", b"version 4"]
    assert await bus.weights_after(entries[3], 0) == [(entries[4], b"version 4")]
    assert await bus.weights_after(entries[4], 0.05) == []


async def test_a_follower_that_waits_sees_a_publication_at_once(medium: Medium) -> None:
    learner, follower = await medium.bus(), await medium.bus()
    await learner.claim(1, "learner", 30.0, False)
    waiting = asyncio.create_task(follower.weights_after("0", 10.0))
    await asyncio.sleep(0.05)
    await learner.publish(1, b"manifest", 3)
    async with asyncio.timeout(60):
        assert [payload for _, payload in await waiting] == [b"manifest"]


async def test_the_incarnation_is_set_once_and_stays(medium: Medium) -> None:
    bus = await medium.bus()
    await bus.claim(1, "learner", 30.0, False)
    before = (await bus.state()).incarnation
    await bus.reconcile(1, 0, 0, [], {}, {})
    made = (await bus.state()).incarnation
    await bus.reconcile(1, 0, 0, [], {}, {})
    assert made != before
    assert (await bus.state()).incarnation == made


async def test_empty_calls_change_nothing(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 1)
    assert await bus.hand_off([]) == await bus.retry([], 3) == await bus.bury([]) == await bus.renew([]) == []
    await bus.release([])
    await bus.discard(1, [])
    await bus.answer(1, [])
    await bus.ask(1, EVAL, [])
    assert await bus.revive([]) == await bus.strip([]) == []
    assert await bus.settle(1, []) == await bus.readmit(1, []) == 0
    assert (await bus.state()).cursor == 1


async def test_a_topic_that_nobody_leased_from_yet_is_read_from_its_beginning(medium: Medium) -> None:
    bus, scorer = await medium.bus(), await medium.bus()
    await start_run(bus, 2)
    held = await bus.lease([TICKETS], 2, 0)
    topic = "rollouts:a teacher of its own"
    await bus.hand_off([Move(lease, topic, b"rollout") for lease in held])
    assert (await bus.state()).backlog[topic] == 2
    assert seqs(await scorer.lease([topic], 10, 0)) == [0, 1]


def test_the_media_offer_what_the_protocol_asks() -> None:
    from common.bus.base import Bus
    from common.bus.memory import MemoryBus
    from common.bus.redis_bus import RedisBus

    names = {name for name in vars(Bus) if not name.startswith("_")}
    missing = SimpleNamespace(redis=names - set(dir(RedisBus)), memory=names - set(dir(MemoryBus)))
    assert (missing.redis, missing.memory) == (set(), set())


async def test_what_a_dead_learner_had_leased_goes_to_its_successor_at_once(medium: Medium) -> None:
    dead = await medium.bus()
    await start_run(dead, 2)
    held = await advance(dead, TICKETS, SCORED)
    successor = await medium.bus()
    await successor.claim(2, "successor", 30.0, True)
    assert await successor.lease([SCORED], 10, 0) == []
    await successor.bare.reconcile(2, 2, 0, [], {}, {})
    again = await successor.lease([SCORED], 10, 0)
    assert seqs(again) == seqs(held)
    assert [lease.deliveries for lease in again] == [1, 1]


async def test_the_oldest_entry_of_a_topic_has_an_age_that_grows_until_it_leaves(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 2)
    first = (await bus.state()).oldest_s[TICKETS]
    await asyncio.sleep(0.01)
    second = (await bus.state()).oldest_s
    assert second[TICKETS] > first >= 0
    assert second.keys() == {TICKETS}
    held = await bus.lease([TICKETS], 2, 0)
    assert (await bus.state()).oldest_s[TICKETS] > second[TICKETS]  # whoever works on it
    await bus.hand_off([Move(lease, SCORED, lease.payload) for lease in held])
    assert (await bus.state()).oldest_s.keys() == {SCORED}
