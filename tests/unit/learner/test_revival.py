"""`reflux dead retry`: what an operator revived is trained, whatever the learner and its checkpoints remember of its death."""

import asyncio
from functools import partial

import pytest
from learner_fakes import FakePrompts, ticket_of
from learner_world import World

from common.bus.base import TICKETS, Burial, Revival
from common.bus.memory import MemoryBus
from common.bus.memory_server import MemoryServer
from common.codec import encode
from common.messages import Version
from learner.line import Line
from learner.reconcile import reconcile


@pytest.fixture
def world(tmp_path):
    return partial(World, tmp_path)


async def bury_first(bus):
    """Seq 0 dies as a ticket."""
    held = []
    while not held:
        held = await bus.lease([TICKETS], 1, 0.05)
    assert held[0].seq == 0
    await bus.bury([Burial(held[0], "poison")])


async def revive(bus, seq):
    letter = (await bus.dead_letters())[seq]
    attempt = letter.attempt + 1
    assert await bus.revive([Revival(seq, attempt, encode(ticket_of(seq, attempt)))]) == [seq]


@pytest.mark.parametrize("straggler", ["mask", "wait"])
async def test_a_sample_revived_while_the_learner_runs_is_trained(world, straggler):
    run = world(straggler=straggler)
    run.sampling.clear()
    async with run.workers(), run.connect("operator") as bus:
        life = asyncio.create_task(run.life())
        await bury_first(bus)
        await asyncio.sleep(1.2)  # the learner has heard of the death
        await revive(bus, 0)
        run.sampling.set()
        await asyncio.wait_for(life, 60)
        result = await run.check()
    assert 0 in run.trainer.trained
    assert result["dead"] == {}


async def test_a_sample_revived_while_no_learner_runs_is_trained_by_the_next(world):
    run = world(checkpoint_every=1)
    run.sampling.clear()
    async with run.workers(), run.connect("operator") as bus:
        life = asyncio.create_task(run.crash(plan=("settle", "after", 3)))
        await bury_first(bus)
        await asyncio.sleep(1.2)
        run.sampling.set()
        await life
        await revive(bus, 0)
        result = await run.finish()
    assert run.trainer.trained.count(0) == 1
    assert result["dead"] == {}


def told(line, server):
    bus = MemoryBus(server, name="learner")
    return bus, reconcile(bus, line, FakePrompts(), min_version=Version(1, 0), manifest=None, keep=1)


async def test_a_server_rolled_back_to_before_a_revival_gets_the_sample_again():
    server, line = MemoryServer(), Line(term=1, cursor=2)
    bus, reconciled = told(line, server)
    await reconciled
    await bury_first(bus)
    letter = server.dead[0]
    line.join({0: "poison"}, {})
    await revive(bus, 0)
    line.join({}, await bus.lives())
    server.restart()
    server.dead[0] = letter
    await told(line, server)[1]
    assert (set(await bus.live()), await bus.dead_letters(), await bus.lives()) == ({0, 1}, {}, {0: 1})


async def test_a_checkpoint_of_before_a_revival_is_corrected_by_the_server():
    server, line = MemoryServer(), Line(term=1, cursor=2)
    bus, reconciled = told(line, server)
    await reconciled
    await bury_first(bus)
    line.join({0: "poison"}, {})
    kept = line.to_json()
    await revive(bus, 0)
    resumed = Line.from_json(kept)
    await told(resumed, server)[1]
    assert (set(await bus.live()), resumed.dead, resumed.lives) == ({0, 1}, {}, {0: 1})


async def test_a_sample_that_died_again_stays_dead_everywhere():
    server, line = MemoryServer(), Line(term=1, cursor=2)
    bus, reconciled = told(line, server)
    await reconciled
    await bury_first(bus)
    await revive(bus, 0)
    held = await bus.lease([TICKETS], 2, 0)
    await bus.bury([Burial(lease, "again") for lease in held if lease.seq == 0])
    await told(line, server)[1]
    assert (line.dead, set(await bus.live())) == ({0: "again"}, {1})
    server.restart()
    await told(line, server)[1]
    assert set(await bus.dead_letters()) == {0}
