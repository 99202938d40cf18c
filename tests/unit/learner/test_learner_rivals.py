"""Lost servers, zombies, torn disks, signals."""

import asyncio
import threading
from functools import partial

import pytest
from learner_fakes import FakeTrainer, background
from learner_world import World

from common.bus.embedded import EmbeddedServer
from common.errors import LearnerActive, Superseded
from common.messages import Version
from learner import checkpoint, journal


@pytest.fixture
def world(tmp_path):
    return partial(World, tmp_path)


class SteppingTrainer(FakeTrainer):
    """Stops before step `at` until it is let go."""

    def __init__(self, at):
        super().__init__()
        self.at, self.reached, self.go = at, threading.Event(), threading.Event()

    def step(self, record, samples, lr):
        if record.step == self.at:
            self.reached.set()
            assert self.go.wait(60)
        return super().step(record, samples, lr)


async def until(event):
    assert await asyncio.to_thread(event.wait, 60)


async def test_an_empty_server_in_mid_run_loses_and_repeats_nothing(world):
    run, trainer = world(), SteppingTrainer(3)
    async with run.workers(), run.connect("reader") as bus:
        life = asyncio.create_task(run.life(trainer=trainer))
        await until(trainer.reached)
        run.sampling.clear()
        trainer.go.set()
        await asyncio.sleep(0.5)
        assert (await bus.state()).live > 0, "tickets wait to be lost"
        await run.wipe()
        run.sampling.set()
        await asyncio.wait_for(life, 60)
        await run.check()


async def test_an_empty_server_between_two_lives_loses_and_repeats_nothing(world):
    run = world()
    async with run.workers():
        await run.crash(plan=("settle", "after", 5))
        await run.wipe()
        await run.finish()


async def test_a_zombie_stops_and_leaves_no_trace_in_the_surviving_line(world):
    run, zombie = world(), SteppingTrainer(5)
    async with run.workers():
        first = asyncio.create_task(run.life(trainer=zombie))
        await until(zombie.reached)
        second_trainer = SteppingTrainer(7)
        second = asyncio.create_task(run.life(trainer=second_trainer))
        await until(second_trainer.reached)
        zombie.go.set()
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.wait_for(first, 60)
        error = caught.value
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, Superseded)
        second_trainer.go.set()
        await asyncio.wait_for(second, 60)
        await run.check()


async def test_a_second_learner_is_refused_while_the_first_lives(world):
    run, trainer = world(), SteppingTrainer(3)
    async with run.workers():
        life = asyncio.create_task(run.life(trainer=trainer))
        await until(trainer.reached)
        before = run.directory.config.stat().st_ino
        with pytest.raises(LearnerActive):
            await run.life(take_over=False)
        assert run.directory.config.stat().st_ino == before, "only a learner that has its term says how it runs"
        run.trainer = trainer
        trainer.go.set()
        await asyncio.wait_for(life, 60)
        await run.check()


async def test_what_a_torn_journal_lost_is_sampled_again(world):
    run = world(checkpoint_every=100)
    async with run.workers():
        await run.crash(plan=("settle", "before", 5))
        (segment,) = (run.directory.journal / "term000001").iterdir()
        segment.write_bytes(segment.read_bytes()[:-11])
        assert len(list(journal.records(run.directory.journal, 1))) == 4
        result = await run.finish()
        assert result["replayed_steps"] == 4


async def test_a_damaged_checkpoint_sends_the_resume_to_the_one_before_and_its_records(world):
    run = world()
    async with run.workers():
        await run.crash(plan=("settle", "after", 8))
        newest = checkpoint.newest(run.directory.checkpoints)
        assert newest.version == Version(1, 6)
        (newest.model / "state.json").write_text("[]")
        result = await run.finish()
        assert result["replayed_steps"] == 5


async def test_a_signal_ends_at_a_step_with_a_checkpoint_and_the_next_life_goes_on(world):
    run, trainer, stopping = world(checkpoint_every=100), SteppingTrainer(4), asyncio.Event()
    async with run.workers():
        life = asyncio.create_task(run.life(trainer=trainer, stopping=stopping))
        await until(trainer.reached)
        stopping.set()
        trainer.go.set()
        await asyncio.wait_for(life, 60)
        assert not run.directory.result.exists()
        stopped_at = checkpoint.newest(run.directory.checkpoints).version
        assert stopped_at.term == 1
        assert stopped_at.step >= 4
        await asyncio.wait_for(run.life(take_over=False), 60)
        result = await run.check()
        assert result["replayed_steps"] <= 1, "only a record that was durable and not yet trained"


async def test_a_signal_while_nothing_arrives_ends_at_once(world):
    run, stopping = world(), asyncio.Event()
    run.sampling.clear()
    async with run.workers():
        life = asyncio.create_task(run.life(stopping=stopping))
        await asyncio.sleep(0.5)
        stopping.set()
        await asyncio.wait_for(life, 60)


async def test_old_segments_go_when_the_run_keeps_no_record(world):
    run = world(record=False, steps=12, checkpoint_every=2, keep_checkpoints=2)
    async with run.workers():
        await run.finish()
    assert journal.first_step(run.directory.journal, 1) > 5
    assert [version.step for version in checkpoint.versions(run.directory.checkpoints)] == [10, 12]


async def test_many_lives_with_crashes_everywhere_train_every_sample_once(world):
    run = world(steps=12)
    async with run.workers():
        for plan in [("settle", "after", 3), ("publish", "after", 3), ("admit", "after", 2), ("settle", "before", 2)]:
            await run.crash(plan=plan)
        result = await run.finish()
    assert result["term"] == 5


async def test_the_dead_are_replaced_and_counted(world):
    run = world()

    async def bury_two():
        async with run.connect("undertaker") as bus:
            for _ in range(2):
                leases = []
                while not leases:
                    leases = await bus.lease(["tickets"], 1, 0.05)
                from common.bus.base import Burial

                await bus.bury([Burial(leases[0], "poison")])

    run.sampling.clear()
    async with run.workers():
        life = asyncio.create_task(run.life())
        async with background():
            await asyncio.wait_for(bury_two(), 60)
        run.sampling.set()
        await asyncio.wait_for(life, 60)
        result = await run.check()
    assert result["ledger"] == {"admitted": 26, "applied": 24, "live": 0, "dead": 2}
    assert list(result["dead"].values()) == ["poison", "poison"]


@pytest.mark.redis
async def test_a_real_server_that_comes_back_empty_and_a_crash_change_nothing(tmp_path):
    async with EmbeddedServer.start(tmp_path / "server") as server:
        run, trainer = World(tmp_path, url=server.url), SteppingTrainer(4)
        async with run.workers():
            await run.crash(plan=("settle", "after", 2))
            life = asyncio.create_task(run.life(trainer=trainer))
            await until(trainer.reached)
            await run.wipe()
            trainer.go.set()
            await asyncio.wait_for(life, 60)
            await run.check()
