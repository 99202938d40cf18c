"""What the learner does with whatever `scored` may bring."""

import pytest
from learner_fakes import record_from, scored_rollout, ticket_of

from common.bus.base import SCORED, TICKETS, Move
from common.bus.memory import MemoryBus
from common.bus.memory_server import MemoryServer
from common.codec import decode, encode
from common.leases import LeaseKeeper
from common.messages import ScoredRollout, Ticket, Version
from common.pulse import Pulse
from learner.holding import Holding
from learner.line import Line


class Bench:
    """A learner's holding on a bus where samples 0 … count − 1 are scored."""

    def __init__(self):
        self.server = MemoryServer()
        self.bus = MemoryBus(self.server, name="learner")
        self.keeper = LeaseKeeper(self.bus, lease_s=30.0, work_deadline_s=60.0)
        self.line = Line(term=1, cursor=0)
        self.holding = Holding(bus=self.bus, keeper=self.keeper, pulse=Pulse(), line=self.line)

    async def score(self, count, payload=lambda seq: encode(scored_rollout(seq))):
        await self.bus.reconcile(1, 0, 0, (), {}, {})
        self.line.cursor = await self.bus.admit(1, 0, [(seq, encode(ticket_of(seq))) for seq in range(count)])
        leases = await self.bus.lease([TICKETS], count, 0)
        await self.bus.hand_off([Move(lease, SCORED, payload(lease.seq)) for lease in leases])
        return await self.bus.lease([SCORED], count, 0)

    async def balanced(self):
        state = await self.bus.state()
        assert state.cursor == state.live + state.applied + state.dead
        return state


@pytest.fixture
def bench():
    return Bench()


async def test_what_is_scored_is_held_and_renewed(bench):
    leases = await bench.score(3)
    await bench.holding.take_in(leases)
    assert sorted(bench.holding.held) == [0, 1, 2]
    assert all(bench.keeper.holds(lease) for lease in leases)


async def test_an_applied_sample_is_counted_and_never_held(bench):
    leases = await bench.score(2)
    bench.line.apply(record_from(1, 1, [0]))
    await bench.holding.take_in(leases)
    assert list(bench.holding.held) == [1]
    assert (await bench.balanced()).applied == 1


async def test_a_dead_sample_is_buried_and_never_held(bench):
    leases = await bench.score(2)
    bench.line.bury({1: "poison"})
    await bench.holding.take_in(leases)
    assert list(bench.holding.held) == [0]
    assert (await bench.balanced()).dead == 1
    assert (await bench.bus.dead_letters())[1].reason == "poison"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (lambda seq: b"garbage", "unusable"),
        (lambda seq: encode(ScoredRollout(scored_rollout(seq).rollout)), "have not scored it"),
        (lambda seq: encode(scored_rollout(seq + 7)), "carries seq 7"),
    ],
)
async def test_what_cannot_be_used_goes_to_the_dead_letters_with_its_reason(bench, payload, reason):
    await bench.holding.take_in(await bench.score(1, payload))
    assert not bench.holding.held
    assert reason in (await bench.bus.dead_letters())[0].reason
    await bench.balanced()


async def test_of_two_entries_of_a_seq_the_one_that_live_names_stays(bench):
    (first,) = await bench.score(1)
    await bench.holding.take_in([first])
    bench.server.topics[SCORED].pop(first.entry)
    del bench.server.live[0]
    await bench.bus.readmit(1, [(0, encode(ticket_of(0)))])
    (ticket,) = await bench.bus.lease([TICKETS], 1, 0)
    await bench.bus.hand_off([Move(ticket, SCORED, encode(scored_rollout(0)))])
    (second,) = await bench.bus.lease([SCORED], 1, 0)
    await bench.holding.take_in([second])
    assert bench.holding.held[0].lease == second
    assert not bench.keeper.holds(first)


async def test_a_lost_lease_is_forgotten(bench):
    leases = await bench.score(2)
    await bench.holding.take_in(leases)
    bench.keeper.drop(leases[:1])
    bench.holding.drop_lost()
    assert list(bench.holding.held) == [1]


async def test_a_sample_taken_again_is_the_next_attempt_for_the_newest_weights(bench):
    await bench.holding.take_in(await bench.score(1))
    await bench.holding.sample_again(list(bench.holding.held.values()), Version(1, 5), max_attempts=3)
    assert not bench.holding.held
    (lease,) = await bench.bus.lease([TICKETS], 1, 0)
    ticket = decode(lease.payload, Ticket)
    assert (lease.attempt, ticket.attempt, ticket.min_version) == (1, 1, Version(1, 5))


async def test_what_is_let_go_can_be_leased_at_once(bench):
    await bench.holding.take_in(await bench.score(2))
    await bench.holding.let_go()
    assert sorted(lease.seq for lease in await bench.bus.lease([SCORED], 2, 0)) == [0, 1]
