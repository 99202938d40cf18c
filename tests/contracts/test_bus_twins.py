"""The memory twin and a real server, given the same random calls, say and hold the same."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from bus_media import ROLLOUTS, Medium, tickets

from common.bus.base import SCORED, TICKETS, Burial, Move, Retry, Revival

NEXT = {TICKETS: ROLLOUTS, ROLLOUTS: SCORED, SCORED: SCORED}
WORKERS = 3
CALLS = 150


class Driven:
    """Three workers on one medium; leases are told by number, as entries have other names on each medium."""

    def __init__(self, workers) -> None:
        self.workers = workers
        self.leases = []

    async def do(self, rng: random.Random):
        worker = self.workers[rng.randrange(WORKERS)]
        some = [self.leases[i] for i in rng.sample(range(len(self.leases)), min(len(self.leases), rng.randrange(5)))]
        match rng.randrange(12):
            case 0:
                state = await worker.state()
                first = state.cursor + rng.choice([0, 0, 0, 1])
                return await worker.admit(1, first, tickets(*range(first, first + rng.randrange(6))))
            case 1 | 2 | 3:
                topics = rng.sample([TICKETS, ROLLOUTS, SCORED], rng.randrange(1, 4))
                leased = await worker.lease(topics, rng.randrange(1, 6), 0)
                self.leases += leased
                return [replace(lease, entry="") for lease in leased]
            case 4 | 5:
                return await worker.hand_off([Move(lease, NEXT[lease.topic], b"p%d" % lease.seq) for lease in some])
            case 6:
                return await worker.retry([Retry(lease, b"again", f"reason {lease.seq % 2}") for lease in some], 3)
            case 7:
                return await worker.release(some)
            case 8:
                if rng.random() < 0.5:
                    return await worker.bury([Burial(lease, "why") for lease in some[:1]])
                return [await worker.begin_alone(lease) for lease in some]
            case 9 | 10:
                letters = await worker.dead_letters()
                return await worker.revive([Revival(seq, letters[seq].attempt + rng.choice([0, 1]), b"anew") for seq in sorted(letters)])
            case _:
                return await worker.settle(1, [lease for lease in some if lease.topic == SCORED])

    async def look(self):
        worker = self.workers[0]
        state = await worker.state()
        live = {seq: (one.topic, one.attempt) for seq, one in (await worker.live()).items()}
        counts = {topic: (n, state.leased[topic]) for topic, n in state.backlog.items() if n}
        return (state.cursor, state.applied, state.dead, state.retried, counts, live, await worker.dead_letters())


@pytest.mark.parametrize("medium_url", ["valkey", "redis-6.2"], indirect=True)
@pytest.mark.parametrize("seed", range(4))
async def test_the_twins_agree_call_by_call(medium: Medium, seed: int) -> None:
    memory = Medium()
    twins = []
    for one in (memory, medium):
        workers = [await one.bus(f"worker-{n}") for n in range(WORKERS)]
        await workers[0].claim(1, "learner", 30.0, False)
        twins.append(Driven(workers))
    for call in range(CALLS):
        told = [await twin.do(random.Random(1000 * seed + call)) for twin in twins]
        assert told[0] == told[1], f"call {call} of seed {seed}"
        looks = [await twin.look() for twin in twins]
        assert looks[0] == looks[1], f"after call {call} of seed {seed}"
