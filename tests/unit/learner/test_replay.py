"""Training again from the journal."""

import json
from functools import partial

import pytest
from learner_fakes import FakeTrainer
from learner_world import World

from common.errors import ConfigError
from learner.replay import replay


@pytest.fixture
def world(tmp_path):
    return partial(World, tmp_path)


class Numbered(FakeTrainer):
    """Its loss depends on everything it was trained on, in order."""

    def step(self, record, samples, lr):
        from dataclasses import replace

        stats = super().step(record, samples, lr)
        return replace(stats, loss=sum(seq / (place + 3) for place, seq in enumerate(self.trained)))


def again(run):
    return list(replay(run.config, lambda *_: Numbered()))


async def finished(run, *crashes):
    async with run.workers():
        for plan in crashes:
            await run.crash(plan=plan, trainer=Numbered())
        await run.life(trainer=Numbered())


async def test_a_run_trained_again_comes_to_the_same_losses_whatever_died_in_it(world):
    run = world()
    await finished(run, ("settle", "after", 3), ("publish", "after", 3))
    steps = again(run)
    assert [one.version.step for one in steps] == list(range(1, 9))
    assert {one.version.term for one in steps} == {1, 2, 3}
    assert not any(one.differs for one in steps)
    assert sum(one.recorded is not None for one in steps) >= 6


async def test_a_step_that_comes_out_otherwise_is_told(world):
    run = world()
    await finished(run)
    lines = [json.loads(text) for text in run.directory.metrics.read_text().splitlines()]
    lines[4]["loss"] += 1e-12
    run.directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [one.version.step for one in again(run) if one.differs] == [5]


async def test_a_run_without_its_whole_record_is_trained_again_from_its_oldest_checkpoint(world):
    run = world(record=False, steps=12, checkpoint_every=2, keep_checkpoints=2)
    await finished(run)
    steps = again(run)
    assert [one.version.step for one in steps] == [11, 12]
    assert not any(one.differs for one in steps)


async def test_where_nothing_is_kept_one_sentence_says_what_to_set(world):
    run = world(record=False, steps=4, checkpoint_every=2, keep_checkpoints=1)
    await finished(run)
    with pytest.raises(ConfigError, match=r"learner\.record = true"):
        again(run)


async def test_replaying_writes_nothing(world):
    run = world()
    await finished(run)
    before = {path: path.stat().st_mtime_ns for path in run.directory.root.rglob("*")}
    again(run)
    assert {path: path.stat().st_mtime_ns for path in run.directory.root.rglob("*")} == before
