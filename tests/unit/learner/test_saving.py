"""Checkpoints that are written beside training: what counts, in what order, and what happens when the writing fails or is cut off."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from disk_of_its_own import small_disk
from learner_fakes import FakeTrainer
from learner_world import World

from common.messages import Version
from learner import checkpoint, journal

CUT_OFF = """
import asyncio, os, signal, sys, time
from functools import partial
from pathlib import Path
from learner_fakes import FakeTrainer
from learner_world import World

class Dying(FakeTrainer):
    def begin_save(self, directory):
        return partial(self.killed, super().begin_save(directory)) if self.steps == 6 else super().begin_save(directory)

    def killed(self, write):
        write()
        while self.steps < 7:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    run = World(Path(sys.argv[1]), checkpoint_async=True)
    async with run.workers():
        await run.life(trainer=Dying())

asyncio.run(main())
"""


@pytest.fixture
def world(tmp_path):
    return partial(World, tmp_path, checkpoint_async=True)


class HeldTrainer(FakeTrainer):
    """What it copies after step `at` is written when `go` is set."""

    def __init__(self, at=3):
        super().__init__()
        self.at, self.go, self.begun = at, threading.Event(), threading.Event()

    def begin_save(self, directory):
        write = super().begin_save(directory)
        return partial(self.hold, write) if self.steps == self.at else write

    def hold(self, write):
        self.begun.set()
        assert self.go.wait(60)
        write()


async def until(condition, life):
    async with asyncio.timeout(60):
        while not condition():
            assert not life.done(), life.exception()
            await asyncio.sleep(0.01)


def kept(run):
    return checkpoint.versions(run.directory.checkpoints)


@pytest.mark.parametrize("record", [True, False])
async def test_training_goes_on_until_the_next_one_is_due_and_until_then_the_older_one_counts(world, record):
    run, trainer = world(record=record), HeldTrainer()
    async with run.workers():
        life = asyncio.create_task(run.life(trainer=trainer))
        await until(lambda: run.worker and run.worker.pulse.report().state == "waits for checkpoint", life)
        assert trainer.steps == 6, "as far as the next one that is due"
        assert kept(run) == [Version(1, 0)]
        held = [one.step for one in journal.records(run.directory.journal, 1, after=0)]
        assert held[:6] == [1, 2, 3, 4, 5, 6], "all that the older one needs"
        trainer.go.set()
        await asyncio.wait_for(life, 60)
        if record:
            await run.check()
    assert kept(run) == [Version(1, 6), Version(1, 8)]


async def test_what_is_written_is_the_state_and_the_line_of_the_step_at_which_it_was_begun(world):
    run, trainer = world(steps=5), HeldTrainer()
    async with run.workers():
        life = asyncio.create_task(run.life(trainer=trainer))
        await until(lambda: trainer.steps == 5, life)
        trainer.go.set()
        await asyncio.wait_for(life, 60)
    found = checkpoint.load(run.directory.checkpoints, Version(1, 3))
    late = FakeTrainer()
    late.load(found.model)
    assert (late.steps, late.trained, found.line.step) == (3, trainer.trained[:9], 3)
    assert all(seq in found.line for seq in trainer.trained[:9])
    assert not any(seq in found.line for seq in trainer.trained[9:])


async def test_a_signal_ends_the_run_only_when_all_is_written(world):
    run, trainer, stopping = world(), HeldTrainer(), asyncio.Event()
    async with run.workers():
        life = asyncio.create_task(run.life(trainer=trainer, stopping=stopping))
        await until(trainer.begun.is_set, life)
        stopping.set()
        run.sampling.clear()
        await until(lambda: run.worker.pulse.report().state == "waits for checkpoint", life)
        trainer.go.set()
        await asyncio.wait_for(life, 60)
        assert Version(1, 3) in kept(run)
        assert kept(run)[-1] == Version(1, trainer.steps)
        run.sampling.set()
        await run.finish()


async def test_a_failure_to_write_ends_the_run_with_its_reason(world):
    class Failing(FakeTrainer):
        def write(self, directory, state):
            if self.steps:
                raise RuntimeError("the disk is on fire")
            super().write(directory, state)

    run = world()
    async with run.workers():
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.wait_for(run.life(trainer=Failing()), 60)
        assert caught.group_contains(RuntimeError, match="the disk is on fire")
        assert kept(run) == [Version(1, 0)]
        await run.finish()


async def test_a_write_that_finds_no_room_makes_the_run_wait_and_say_so(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        run = World(disk.path, checkpoint_async=True)

        class Filling(FakeTrainer):
            full = False

            def write(self, directory, state):
                if self.steps >= 3 and not self.full:
                    self.full = True
                    disk.fill()
                super().write(directory, state)

        trainer = Filling()
        async with run.workers():
            life = asyncio.create_task(run.life(trainer=trainer))
            await until(lambda: run.worker and "obstacle" in run.worker.pulse.report().gauges, life)
            assert "make room" in run.worker.pulse.report().gauges["obstacle"]
            await asyncio.sleep(1.0)
            step = trainer.steps
            await asyncio.sleep(1.0)
            assert trainer.steps == step < 8, "it pauses"
            disk.make_room()
            await asyncio.wait_for(life, 60)
            await run.check()


async def test_a_learner_killed_while_it_writes_resumes_from_the_older_one(world, tmp_path):
    paths = os.pathsep.join((str(Path(__file__).parents[3]), str(Path(__file__).parent)))
    command = [sys.executable, "-c", CUT_OFF, str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, env=os.environ | {"PYTHONPATH": paths}, timeout=100, check=False)
    assert done.returncode == -signal.SIGKILL
    run = world()
    assert kept(run)[-1] == Version(1, 3)
    assert (run.directory.checkpoints / ".term000001-step00000006.tmp" / "model" / "state.json").exists()
    async with run.workers():
        result = await run.finish()
    assert result["replayed_steps"] >= 4
