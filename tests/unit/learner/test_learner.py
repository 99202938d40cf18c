"""The learner as a whole: its order of work, its crashes, its rivals."""

from functools import partial

import pytest
from learner_fakes import FakeTrainer
from learner_world import Crash, World

from common.weights.directory import DirectoryStore


@pytest.fixture
def world(tmp_path):
    return partial(World, tmp_path)


async def test_a_run_trains_every_sample_once_and_leaves_its_record(world):
    run = world()
    async with run.workers():
        result = await run.finish()
    assert (result["samples"], result["steps"], result["ledger"]) == (24, 8, {"admitted": 24, "applied": 24, "live": 0, "dead": 0})
    assert result["tokens"] == 24 * 5
    assert result["staleness"]["max"] <= 1
    assert run.trainer.closed


CRASHES = [
    ("claim", "before", 1),
    ("claim", "after", 1),
    ("reconcile", "before", 1),
    ("reconcile", "after", 1),
    ("publish", "before", 1),
    ("publish", "after", 1),
    ("publish", "before", 4),
    ("publish", "after", 4),
    ("admit", "before", 1),
    ("admit", "after", 1),
    ("admit", "after", 3),
    ("settle", "before", 1),
    ("settle", "after", 1),
    ("settle", "before", 4),
    ("settle", "after", 4),
    ("settle", "after", 8),
    ("reconcile", "before", 3),
    ("reconcile", "after", 3),
]


@pytest.mark.parametrize("plan", CRASHES, ids=["-".join(map(str, plan)) for plan in CRASHES])
async def test_after_a_crash_at_any_call_every_sample_is_applied_once(world, plan):
    run = world()
    async with run.workers():
        await run.crash(plan=plan)
        await run.finish()


@pytest.mark.parametrize("plan", [("put", "before", 1), ("put", "after", 1), ("put", "after", 4)], ids=str)
@pytest.mark.parametrize("full_every", [1, 3])
async def test_a_crash_around_the_weight_store_leaves_versions_growing(world, plan, full_every):
    run = world(weights={"full_every": full_every})
    async with run.workers():
        await run.crash(store_plan=plan)
        await run.finish()
    late = DirectoryStore(run.config.weight_directory)
    kept = [await late.manifest_of(version) for version in await late.versions()]
    for manifest in kept:
        await late.fetch(manifest)
    assert {manifest.kind for manifest in kept} == ({"full"} if full_every == 1 else {"full", "delta"})


class DyingTrainer(FakeTrainer):
    """Dies before or after a call, like a process killed in the middle of a step or of a checkpoint."""

    def __init__(self, method, when, count):
        super().__init__()
        self.plan, self.calls = (method, when, count), 0

    def _maybe_die(self, method, when):
        if self.plan[:2] == (method, when):
            self.calls += 1
            if self.calls == self.plan[2]:
                raise Crash(f"{when} {method}")

    def step(self, record, samples, lr):
        self._maybe_die("step", "before")
        stats = super().step(record, samples, lr)
        self._maybe_die("step", "after")
        return stats

    def write(self, directory, state):
        self._maybe_die("save", "before")
        super().write(directory, state)
        self._maybe_die("save", "after")


@pytest.mark.parametrize("method", ["step", "save"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("count", [1, 3])
async def test_after_a_crash_in_a_step_or_checkpoint_every_sample_is_applied_once(world, method, when, count):
    run = world()
    async with run.workers():
        await run.crash(trainer=DyingTrainer(method, when, count))
        await run.finish()
