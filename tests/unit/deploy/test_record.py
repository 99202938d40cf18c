"""A record that is followed tells each thing once, and which rollouts are kept does not grow with the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_run import RecordedRun, scored, spell_letters

from common.codec import encode
from common.config import RunConfig
from common.messages import StepRecord
from deploy.dashboard import shelved
from deploy.report.record import Record
from deploy.report.shelf import Selection, Shelf
from learner.directory import RunDirectory


def steps_of(record: Record, after: int = 0) -> list[int]:
    return [row["step"] for row in record.rows(after)]


@pytest.fixture
def run(tmp_path: Path) -> RecordedRun:
    return RecordedRun(tmp_path)


def follow(config: RunConfig) -> Record:
    record = Record(RunDirectory(config.directory))
    record.refresh()
    return record


async def test_a_reader_is_given_what_came_since_it_read(run: RecordedRun) -> None:
    await run.step(1)
    record = follow(run.config)
    seen = record.revision
    assert steps_of(record) == [1]
    record.refresh()
    assert steps_of(record, seen) == []
    await run.step(2)
    record.refresh()
    assert steps_of(record, seen) == [2]


async def test_a_step_that_is_trained_again_replaces_the_one_before(run: RecordedRun) -> None:
    await run.step(1)
    await run.step(2)
    record = follow(run.config)
    seen = record.revision
    run.say("metrics", {"step": 2, "samples": 2, "kl": 0.125})
    record.refresh()
    assert [(row["step"], row["kl"]) for row in record.rows(seen)] == [(2, 0.125)]
    assert steps_of(record) == [1, 2]


async def test_half_a_line_is_read_when_it_is_whole(run: RecordedRun) -> None:
    file = run.config.directory / "metrics.jsonl"
    file.write_text('{"step": 1, "sam')
    record = follow(run.config)
    assert steps_of(record) == []
    with file.open("a") as out:
        out.write('ples": 2}\n{"step": 2, "samples": 2}\nnot json\n')
    record.refresh()
    assert steps_of(record) == [1, 2]


@pytest.mark.parametrize("size", ["shorter", "longer"])
async def test_a_run_that_was_begun_anew_begins_a_new_epoch(run: RecordedRun, size: str) -> None:
    await run.step(1)
    await run.step(2)
    record = follow(run.config)
    epoch = record.epoch
    file = run.config.directory / "metrics.jsonl"
    other = file.with_suffix(".new")
    other.write_text('{"step": 1, "samples": 9}\n' * (1 if size == "shorter" else 100))
    other.replace(file)
    record.refresh()
    assert record.epoch != epoch
    assert [(row["step"], row["samples"]) for row in record.rows()] == [(1, 9)]


def test_a_long_run_is_thinned_and_keeps_its_last_step(run: RecordedRun) -> None:
    for step in range(1, 4001):
        run.say("metrics", {"step": step, "samples": 1, "staleness": {"1": 1}})
    record = follow(run.config)
    steps = steps_of(record)
    assert len(steps) <= 1501
    assert (steps[0], steps[-1]) == (1, 4000)
    assert record.staleness() == [(1, 4000)]


def record_of(step: int) -> StepRecord:
    payloads = tuple(encode(scored(10 * step + index, gap=index)) for index in range(5))
    return StepRecord(1, step, tuple(range(10 * step, 10 * step + 5)), (0,) * 5, 0, "", payloads)


@pytest.mark.parametrize("together", [True, False])
def test_the_shelf_stays_small_and_has_the_first_and_the_newest_step(together: bool) -> None:
    shelf = Shelf(Selection(steps=8, per_step=2))
    records = [record_of(step) for step in range(1, 102)]
    for some in [records] if together else [[record] for record in records]:
        shelf.take(some)
    steps = [kept.step for kept in shelf]
    assert len(set(steps)) <= 9
    assert {1, 101} <= set(steps)
    assert steps == sorted(steps)
    gaps = [right - left for left, right in zip(sorted(set(steps)), sorted(set(steps))[1:], strict=False)]
    assert max(gaps) <= 16  # spread evenly
    assert all(kept.key[1] % 10 in (3, 4) for kept in shelf)  # those with the largest gaps


@pytest.mark.parametrize("tokens", [1, 3, 7, 20])
def test_the_shelf_keeps_to_its_tokens(tokens: int) -> None:
    shelf = Shelf(Selection(steps=8, per_step=4, tokens=tokens))
    for step in range(1, 30):
        shelf.take([record_of(step)])
        assert sum(kept.tokens for kept in shelf) <= max(tokens, 3)
    assert 29 in {kept.step for kept in shelf}


def test_steps_that_left_the_line_leave_the_shelf() -> None:
    shelf = Shelf(Selection())
    shelf.take(map(record_of, range(1, 6)))
    shelf.forget(3)
    assert {kept.step for kept in shelf} == {1, 2, 3}
    assert shelf.last_step == 3


async def test_a_rollout_that_has_left_the_list_is_read_from_the_journal(run: RecordedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    spell_letters(monkeypatch)
    monkeypatch.setattr(shelved, "_SELECTION", Selection(steps=1, per_step=1))
    for step in range(1, 8):
        await run.step(step)
    shown = shelved.Shelved(run.config, RunDirectory(run.config.directory))
    shown._refresh()
    listed = {(each["step"], each["seq"]) for each in shown.document(0)["rollouts"]}
    assert (4, 8) not in listed
    found = await shown.rollout(4, 8)
    assert found is not None
    assert (found["step"], found["seq"], found["tokens"]) == (4, 8, ["B", "C", "D"])
    assert await shown.rollout(4, 99) is None
    assert await shown.rollout(99, 8) is None
