"""The learner's lock: intake and the forming of batches never wait for each other."""

import asyncio
from types import SimpleNamespace

from learner_fakes import FakePrompts, background, record_from, scored_rollout, ticket_of

from common.bus.base import SCORED, TICKETS, Move
from common.bus.memory import MemoryBus
from common.bus.memory_server import MemoryServer
from common.codec import encode
from common.config.sections import LearnerSection
from common.leases import LeaseKeeper
from common.pulse import Pulse
from learner.feeder import Window
from learner.journal import Journal
from learner.ledger import Ledger
from learner.line import Line

BATCH = 2
STEP = 9


class Bench:
    """A ledger whose learner has done STEP steps; its samples are numbered from `first` on."""

    def __init__(self, directory, work_deadline_s=60.0):
        server = MemoryServer()
        self.bus, self.worker = MemoryBus(server, name="learner", lease_s=0.2), MemoryBus(server, name="worker")
        self.keeper = LeaseKeeper(self.bus, lease_s=0.15, work_deadline_s=work_deadline_s)
        line = Line()
        line.begin(1)
        for step in range(1, STEP + 1):
            line.apply(record_from(1, step, [step - 1]))
        self.first = line.cursor
        section = LearnerSection(batch_size=BATCH, steps=99, max_staleness=1, straggler="retry", max_attempts=9)
        self.ledger = Ledger(
            bus=self.bus,
            keeper=self.keeper,
            pulse=Pulse(),
            line=line,
            journal=Journal(directory / "journal", 1),
            prompts=FakePrompts(),
            publisher=SimpleNamespace(published=None, manifest=None),
            section=section,
            window=Window(BATCH, 1, 99, 1 << 30, 1 << 10),
            keep_manifests=2,
        )

    async def admit(self, count):
        await self.ledger.reconcile()
        first = self.first
        tickets = [(seq, encode(ticket_of(seq))) for seq in range(first, first + count)]
        self.ledger.line.cursor = await self.bus.admit(1, first, tickets)

    async def score(self, sampled_at):
        """Whoever lies in `tickets` comes out scored."""
        leases = await self.worker.lease([TICKETS], 100, 1.0)
        spans = ((1, sampled_at, 4),)
        await self.worker.hand_off([Move(lease, SCORED, encode(scored_rollout(lease.seq, spans, lease.attempt))) for lease in leases])

    async def full(self):
        """Until the learner holds as much as it wants."""
        while len(self.keeper) < 2 * BATCH:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)


async def test_stale_samples_that_fill_the_learner_make_room_for_their_next_attempts(tmp_path):
    bench = Bench(tmp_path)
    await bench.admit(2 * BATCH)
    await bench.score(sampled_at=0)
    async with background(bench.ledger.intake()):
        await bench.full()
        preparing = asyncio.create_task(bench.ledger.prepare())
        await bench.score(sampled_at=STEP)
        prepared = await asyncio.wait_for(preparing, 60)
    assert prepared.record.seqs == (bench.first, bench.first + 1)
    assert prepared.record.attempts == (1, 1)


async def test_leases_that_were_given_up_while_the_learner_was_full_are_taken_again(tmp_path):
    bench = Bench(tmp_path, work_deadline_s=0.3)
    await bench.admit(2 * BATCH)
    await bench.score(sampled_at=STEP)
    async with background(bench.ledger.intake(), bench.keeper.run()):
        await bench.full()
        while len(bench.keeper):  # a long step
            await asyncio.sleep(0.01)
        prepared = await asyncio.wait_for(bench.ledger.prepare(), 60)
    assert prepared.record.seqs == (bench.first, bench.first + 1)


async def test_reconciling_lets_go_of_all_that_is_held(tmp_path):
    bench = Bench(tmp_path)
    await bench.admit(2 * BATCH)
    await bench.score(sampled_at=STEP)
    async with background(bench.ledger.intake()):
        await bench.full()
    await bench.ledger.reconcile()
    assert len(bench.keeper) == 0
    assert (await bench.bus.state()).leased[SCORED] == 0
    async with background(bench.ledger.intake()):
        prepared = await asyncio.wait_for(bench.ledger.prepare(), 60)
    assert prepared.record.seqs == (bench.first, bench.first + 1)
