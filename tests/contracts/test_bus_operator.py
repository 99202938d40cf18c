"""What a person asks of a run, on every medium: another life for a dead sample, a look at it, a pause."""

from __future__ import annotations

import pytest
from bus_media import Medium, seqs, start_run, tickets

from common.bus import connect_url
from common.bus.base import SCORED, TICKETS, Burial, DeadLetter, LiveEntry, Move, Retry, Revival


async def bury(bus, *seqs, reason="poison"):
    held = await bus.lease([TICKETS], 100, 0)
    await bus.bury([Burial(lease, reason) for lease in held if lease.seq in seqs])
    await bus.release([lease for lease in held if lease.seq not in seqs])


async def die_and_revive(bus):
    """Three samples, of which number 1 dies and is revived."""
    await start_run(bus, 3)
    await bury(bus, 1)
    assert await bus.revive([Revival(1, 1, b"anew")]) == [1]


async def test_a_glance_sees_payloads_leased_or_not_and_changes_nothing(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 4)
    held = await bus.lease([TICKETS], 2, 0)
    before = (await bus.state()).leased
    assert await bus.glance(TICKETS, 3) == [payload for _, payload in tickets(0, 1, 2)]
    assert await bus.glance(SCORED, 3) == []
    assert (await bus.state()).leased == before
    assert len(await bus.renew(held)) == 2
    assert len(await bus.lease([TICKETS], 10, 0)) == 2


async def test_a_revived_sample_is_sampled_again_with_its_new_ticket(medium: Medium) -> None:
    bus = await medium.bus()
    await die_and_revive(bus)
    held = {lease.seq: lease for lease in await bus.lease([TICKETS], 10, 0)}
    assert (held[1].attempt, held[1].payload, held[1].deliveries) == (1, b"anew", 1)
    assert sorted(held) == [0, 1, 2]
    assert (await bus.live())[1] == LiveEntry(TICKETS, held[1].entry, 1)
    assert (await bus.dead_letters(), await bus.lives()) == ({}, {1: 1})


async def test_only_what_is_dead_in_the_attempt_named_is_revived(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 3)
    await bury(bus, 1)
    none = [Revival(0, 1, b"live"), Revival(1, 2, b"of another attempt"), Revival(7, 1, b"never admitted")]
    assert await bus.revive(none) == []
    assert (await bus.state()).live == 2
    assert await bus.revive([Revival(1, 1, b"anew"), Revival(1, 1, b"twice")]) == [1]
    assert await bus.revive([Revival(1, 1, b"again")]) == []
    assert (await bus.state()).live == 3


async def test_a_revived_sample_has_the_tries_of_a_new_one(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 1)
    reached = []
    for life in range(2):
        while held := await bus.lease([TICKETS], 1, 0):
            reached.append(held[0].attempt)
            await bus.retry([Retry(held[0], b"ticket", "stale")], 2)
        if not life:
            await bus.revive([Revival(0, 2, b"anew")])
    assert reached == [0, 1, 2, 3]
    assert (await bus.dead_letters())[0].attempt == 3


async def test_an_older_word_of_a_death_does_not_bury_what_was_revived(medium: Medium) -> None:
    bus = await medium.bus()
    await die_and_revive(bus)
    await bus.reconcile(1, 3, 0, [], {1: "known from a checkpoint"}, {})
    assert (set(await bus.live()), await bus.dead_letters()) == ({0, 1, 2}, {})
    await bus.reconcile(1, 3, 0, [], {1: "died again"}, {1: 1})
    assert (set(await bus.live()), set(await bus.dead_letters())) == ({0, 2}, {1})


async def test_a_server_that_forgot_a_revival_hears_of_it(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 3)
    await bury(bus, 1)
    await bus.bare.reconcile(1, 3, 0, [], {}, {1: 1})
    assert (await bus.dead_letters(), await bus.lives()) == ({}, {1: 1})
    assert await bus.readmit(1, tickets(1)) == 1


async def test_a_death_in_a_later_life_replaces_an_earlier_one(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 3)
    await bury(bus, 1)
    await bus.reconcile(1, 3, 0, [], {1: "died again"}, {1: 2})
    assert {seq: letter.reason for seq, letter in (await bus.dead_letters()).items()} == {1: "died again"}
    assert await bus.lives() == {1: 2}


async def test_what_was_revived_and_trained_stays_trained(medium: Medium) -> None:
    bus = await medium.bus()
    await die_and_revive(bus)
    held = await bus.lease([TICKETS], 10, 0)
    await bus.hand_off([Move(lease, SCORED, b"scored") for lease in held])
    assert await bus.settle(1, await bus.lease([SCORED], 10, 0)) == 3
    await bus.reconcile(1, 3, 3, [0, 1, 2], {}, {})
    assert await bus.revive([Revival(1, 2, b"anew")]) == []
    assert (await bus.state()).applied == 3


async def test_a_stripped_letter_stays_dead_and_keeps_its_reason(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 3)
    (held, *rest) = await bus.lease([TICKETS], 3, 0)
    await bus.retry([Retry(held, b"any \x00\n bytes", "stale")], 2)
    (again,) = await bus.lease([TICKETS], 1, 0)
    await bus.bury([Burial(again, "why: 7 apples")])
    assert await bus.strip([0, 1, 5]) == [0]
    assert await bus.dead_letters() == {0: DeadLetter(0, 1, "why: 7 apples", b"")}
    assert await bus.revive([Revival(0, 2, b"anew")]) == [0]
    assert seqs(rest) == [1, 2]


async def test_more_dead_letters_than_one_answer_may_hold_are_all_told(medium: Medium) -> None:
    if not medium.url:
        pytest.skip("the twin in memory has no answers")
    count, size = 150, 4000
    bus = await medium.bus()
    await start_run(bus, count)
    held = await bus.lease([TICKETS], count, 0)
    await bus.hand_off([Move(lease, SCORED, lease.seq.to_bytes(2, "big") * size) for lease in held])
    await bus.bury([Burial(lease, f"reason {lease.seq}") for lease in await bus.lease([SCORED], count, 0)])
    limit = count * size  # half of what the letters hold
    async with connect_url(medium.url, run=medium.run, name="a", lease_s=9.0, outage_timeout_s=60.0, largest_answer=limit) as reader:
        letters = await reader.dead_letters()
    assert letters == {seq: DeadLetter(seq, 0, f"reason {seq}", seq.to_bytes(2, "big") * size) for seq in range(count)}


async def test_admission_can_be_paused_for_the_whole_run(medium: Medium) -> None:
    one, other = await medium.bus(), await medium.bus()
    assert not await one.paused()
    await one.pause(True)
    assert await other.paused()
    await other.pause(False)
    assert not await one.paused()


async def test_the_first_word_on_a_teachers_weights_counts(medium: Medium) -> None:
    one, other = await medium.bus(), await medium.bus()
    assert [await one.vouch("t", "a"), await other.vouch("t", "b"), await other.vouch("u", "b")] == ["a", "a", "b"]


async def test_a_purge_leaves_nothing_and_is_refused_while_somebody_lives(medium: Medium) -> None:
    bus, other = await medium.bus(), await medium.bus(run="other run")
    await die_and_revive(other)
    await die_and_revive(bus)
    await bus.beat("scorer-1", b"report", 30.0)
    assert await bus.purge(False) == ["learner", "scorer-1"]
    assert (await bus.state()).live == 3
    assert await bus.purge(True) == []
    state = await bus.state()
    assert (state.cursor, state.live, state.dead, state.term, await bus.lives(), await bus.reports()) == (0, 0, 0, 0, {}, {})
    assert (await other.state()).live == 3
    await start_run(bus, 2)
    assert seqs(await bus.lease([TICKETS], 5, 0)) == [0, 1]
    await bus.resign(1, "learner")
    assert await bus.purge(False) == []
