"""A full disk at the journal, a checkpoint, a publication: the run waits, says so, and goes on when there is room."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from functools import partial
from itertools import count

import pytest
from disk_of_its_own import small_disk
from learner_fakes import FakeTrainer, record_from
from learner_world import World

from common.errors import DiskFull, StoreAway
from common.messages import Version
from common.weights.base import RawTensor
from common.weights.directory import DirectoryStore
from learner import checkpoint, export
from learner.disk import append_durably, write_durably
from learner.journal import Journal, records, term_directory
from learner.line import Line


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as one:
        yield one


async def test_a_record_without_room_is_not_there_at_all_and_fits_later(disk):
    journal = Journal(disk.path / "journal", 1)
    await journal.append(record_from(1, 1, [0, 1]))
    disk.fill()
    for _ in range(2):
        with pytest.raises(DiskFull, match=r"cannot write the journal below .*make room"):
            await journal.append(record_from(1, 2, range(2, 400)))
    disk.make_room()
    for step, seqs in ((2, range(2, 400)), (3, [400])):
        await journal.append(record_from(1, step, seqs))
    journal.close()
    assert [record.step for record in records(disk.path / "journal", 1)] == [1, 2, 3]


async def test_a_first_segment_without_room_can_be_begun_again(disk):
    (disk.path / "journal").mkdir()
    journal = Journal(disk.path / "journal", 1)
    disk.fill()
    with pytest.raises(DiskFull):
        await journal.append(record_from(1, 1, range(400)))
    disk.make_room()
    await journal.append(record_from(1, 1, range(400)))
    journal.close()
    assert len(list(term_directory(disk.path / "journal", 1).iterdir())) == 1
    assert [record.step for record in records(disk.path / "journal", 1)] == [1]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_checkpoint_without_room_leaves_nothing_and_the_one_before_stays(disk, error):
    line = Line(term=1, step=3)

    def save(directory):
        (directory / "state.json").write_text(json.dumps([1]))

    def fill(directory):
        disk.fill()
        raise error

    checkpoint.save(disk.path, line.to_json(), {}, save)
    with pytest.raises(DiskFull, match="cannot write a checkpoint"):
        checkpoint.save(disk.path, line.to_json() | {"step": 6}, {}, fill)
    disk.make_room()
    assert [path.name for path in disk.path.iterdir()] == ["term000001-step00000003"]
    assert checkpoint.newest(disk.path).version == Version(1, 3)


def test_a_failure_with_room_left_is_no_full_disk(tmp_path):
    def fail(directory):
        raise RuntimeError("another reason")

    with pytest.raises(RuntimeError, match="another reason"):
        checkpoint.save(tmp_path, Line(term=1).to_json(), {}, fail)


def test_small_files_without_room_keep_their_old_content(disk):
    path, log = disk.path / "file", disk.path / "log"
    write_durably(path, "old")
    append_durably(log, "one\n")
    disk.fill()
    for write in (partial(write_durably, path, "x" * 8192), partial(append_durably, log, "x" * 8192)):
        with pytest.raises(DiskFull):
            write()
    assert (path.read_text(), log.read_text()) == ("old", "one\n")
    assert sorted(one.name for one in disk.path.iterdir()) == ["ballast", "file", "log"]


async def test_a_version_without_room_is_not_in_the_store(disk):
    store = DirectoryStore(disk.path)
    disk.fill()
    with pytest.raises(StoreAway, match=r"No space left.*make room"):
        await store.put(Version(1, 1), {"w": RawTensor("U8", (9000,), memoryview(bytes(9000)))})
    assert await store.versions() == []
    assert [path.name for path in disk.path.iterdir()] == ["ballast"]


async def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(disk):
    run = World(disk.path)

    class Filling(FakeTrainer):
        def step(self, record, samples, lr):
            if record.step == 2:
                disk.fill()
            return super().step(record, samples, lr)

    async with run.workers():
        life = asyncio.create_task(run.life(trainer=Filling()))
        async with asyncio.timeout(60):
            while run.worker is None or "obstacle" not in run.worker.pulse.report().gauges:
                assert not life.done(), life.exception()
                await asyncio.sleep(0.01)
        report = run.worker.pulse.report()
        assert report.state in {"waits for disk", "waits for weight store"}
        assert "make room" in report.gauges["obstacle"]
        step = run.trainer.steps
        await asyncio.sleep(1.0)
        assert run.trainer.steps <= step + 1, "it pauses"
        assert not life.done()
        disk.make_room()
        await asyncio.wait_for(life, 60)
        await run.check()


def unplug(directory):
    """A file lies where the directory was, also while a version is being written into it."""
    for number in count():
        with suppress(FileNotFoundError):
            directory.rename(directory.with_name(f"unplugged-{number}"))
        try:
            directory.write_text("not mounted")
        except IsADirectoryError:  # whoever writes a version has made it again
            continue
        return


async def test_a_run_whose_weight_store_is_away_says_so_and_goes_on_when_it_is_back(tmp_path):
    run = World(tmp_path)
    away = run.config.weight_directory

    class Unplugging(FakeTrainer):
        def step(self, record, samples, lr):
            if record.step == 2:
                unplug(away)
            return super().step(record, samples, lr)

    async with run.workers():
        life = asyncio.create_task(run.life(trainer=Unplugging()))
        async with asyncio.timeout(60):
            while run.worker is None or run.worker.pulse.report().state != "waits for weight store":
                assert not life.done(), life.exception()
                await asyncio.sleep(0.01)
        assert str(away) in run.worker.pulse.report().gauges["obstacle"]
        assert not life.done()
        away.unlink()
        await asyncio.wait_for(life, 60)
        await run.check()


async def waits_for(run, life, cause):
    async with asyncio.timeout(60):
        while run.worker is None or run.worker.pulse.report().state != f"waits for {cause}":
            assert not life.done(), life.exception()
            await asyncio.sleep(0.01)


async def test_a_learner_that_starts_on_a_full_disk_waits_for_room(disk):
    run = World(disk.path)
    async with run.workers():
        await run.crash(plan=("settle", "after", 2))
        disk.fill()
        life = asyncio.create_task(run.life())
        await waits_for(run, life, "disk")
        disk.make_room()
        await asyncio.wait_for(life, 60)
        await run.check()


async def test_a_model_without_room_leaves_nothing_and_is_written_when_there_is_room(disk, monkeypatch):
    run = World(disk.path)
    real, left = export.save_torch_state_dict, []

    def full_at_first(tensors, directory, **how):
        if not left:
            left.append(directory)
            disk.fill()
        real(tensors, directory, **how)

    monkeypatch.setattr(export, "save_torch_state_dict", full_at_first)
    async with run.workers():
        life = asyncio.create_task(run.life())
        await waits_for(run, life, "disk")
        assert not left[0].exists()
        assert not run.directory.result.exists()
        disk.make_room()
        await asyncio.wait_for(life, 60)
        await run.check()


async def test_a_learner_that_starts_again_while_the_weight_store_is_away_waits_for_it(tmp_path):
    run = World(tmp_path)
    away = run.config.weight_directory
    async with run.workers():
        await run.crash(plan=("settle", "after", 2))
        unplug(away)
        life = asyncio.create_task(run.life())
        await waits_for(run, life, "weight store")
        away.unlink()
        await asyncio.wait_for(life, 60)
        await run.check()


async def test_a_run_that_begins_is_told_that_its_weight_store_is_away(tmp_path):
    run = World(tmp_path)
    run.config.weight_directory.parent.mkdir(parents=True)
    unplug(run.config.weight_directory)
    with pytest.raises(StoreAway):
        await asyncio.wait_for(run.life(), 60)
