"""The audit must go red for every kind of lie that a journal, a checkpoint or a bus can tell."""

from dataclasses import replace

import pytest
from learner_fakes import FakeTrainer, record_from

from common.bus.base import BusState
from common.config import parse_config
from common.messages import Version
from learner import checkpoint
from learner.audit import BusView, Evidence, audit, examine
from learner.directory import RunDirectory
from learner.journal import Journal
from learner.line import Line


def evidence(records, checkpoints=(), bus=None, base=None, max_staleness=1):
    return Evidence(base or Line(), records, list(checkpoints), max_staleness, bus)


def sound_records():
    return [record_from(1, step, [2 * step - 2, 2 * step - 1], spans=((1, step - 1, 4),)) for step in (1, 2, 3)]


def line_after(records):
    line = Line()
    line.begin(1)
    for record in records:
        line.apply(record)
    return line


def view(cursor=6, live=(), dead=(), applied=6):
    state = BusState("i", 1, cursor, len(live), applied, len(dead), {}, {}, {}, 0)
    return BusView(state, frozenset(live), frozenset(dead))


def test_a_sound_line_passes_with_its_figures():
    records = sound_records()
    report, _ = examine(evidence(records, [line_after(records)], view(cursor=8, live=[6], dead=[7])))
    assert report.passed, str(report)
    assert (report.steps, report.samples, dict(report.staleness)) == (3, 6, {0: 24})


def test_a_sample_applied_twice_is_named():
    records = sound_records()
    records[2] = record_from(1, 3, [0, 5], spans=((1, 2, 4),))
    report, seq = examine(evidence(records))
    assert seq == 0
    assert "applied again in step 3" in report.violation


def test_a_sample_of_the_base_applied_again_is_named():
    records = sound_records()
    again = record_from(1, 2, [1, 2], spans=((1, 1, 4),))
    _, seq = examine(evidence([again], base=line_after(records[:1])))
    assert seq == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: [r[0], r[2]], "follows step 1"),
        (lambda r: [r[0], replace(r[1], cursor=3), r[2]], "never admitted"),
        (lambda r: [r[0], replace(r[1], digest="x"), r[2]], "digest"),
        (lambda r: [r[0], replace(r[1], masked_tokens=1), r[2]], "masked"),
        (lambda r: [replace(r[0], term=2), *r[1:]], "must grow"),
        (lambda r: [r[0], replace(r[1], seqs=(2, 9), cursor=10), r[2]], "carries seq 3"),
        (lambda r: [record_from(1, 1, [0, 1], spans=((1, 1, 4),)), *r[1:]], "sampled by weights of step 1"),
        (lambda r: [r[0], r[1], replace(record_from(1, 3, [4, 5], spans=((1, 0, 4),)), masked_tokens=0)], "masked"),
    ],
)
def test_every_lie_of_a_record_is_found(change, said):
    report, _ = examine(evidence(change(sound_records())))
    assert said in report.violation


def test_a_checkpoint_that_disagrees_with_the_journal_is_found():
    records = sound_records()
    wrong = line_after([*records[:2], record_from(1, 3, [4, 6], spans=((1, 2, 4),))])
    report, seq = examine(evidence(records, [wrong]))
    assert seq == 5
    assert "lacks seq 5" in report.violation


@pytest.mark.parametrize(
    ("bus", "said"),
    [
        (view(cursor=7), "the ledger"),
        (view(cursor=7, live=[], dead=[], applied=7), "seq 6 is in 0"),
        (view(cursor=6, live=[], dead=[2], applied=5), "seq 2 is in 2"),
        (view(cursor=6, live=[0, 1, 2, 3, 4], applied=1), "still live"),
    ],
)
def test_a_bus_that_disagrees_is_found(bus, said):
    report, _ = examine(evidence(sound_records(), bus=bus))
    assert said in report.violation


def test_the_last_records_may_not_be_settled_yet():
    report, _ = examine(evidence(sound_records(), bus=view(live=[4, 5], applied=4)))
    assert report.passed, str(report)


async def run_directory(tmp_path, *, record=True):
    """Term 1 goes to step 4; term 2 resumes from its checkpoint of step 2 and record 3, and goes to 5. Term 1's step 4 is a ghost."""
    config = parse_config(
        {
            "run": {"name": "r", "dir": str(tmp_path)},
            "model": {"student": str(tmp_path)},
            "teachers": {"t": {"path": str(tmp_path)}},
            "data": {"prompts": "p"},
            "evaluation": {"prompts": 0},
            "learner": {"max_staleness": 1, "record": record},
        }
    )
    directory = RunDirectory(config.directory)
    directory.open(config, {})
    line, trainer = Line(), FakeTrainer()
    line.begin(1)
    records = {step: record_from(1, step, [step - 1], spans=((1, step - 1, 4),)) for step in (1, 2, 3, 4)}
    await _append(directory, 1, records.values())
    for step in (1, 2, 3):
        line.apply(records[step])
        if step == 2:
            checkpoint.save(directory.checkpoints, line.to_json(), {}, trainer.save)
    line.begin(2)
    checkpoint.save(directory.checkpoints, line.to_json(), {}, trainer.save)
    await _append(directory, 2, [record_from(2, 4, [3], spans=((2, 3, 4),)), record_from(2, 5, [4], spans=((1, 4, 4),))])
    return directory


async def _append(directory, term, records):
    log = Journal(directory.journal, term)
    for record in records:
        await log.append(record)
    log.close()


async def test_the_surviving_line_is_followed_over_terms(tmp_path):
    directory = await run_directory(tmp_path)
    report = await audit(directory.root, None)
    assert report.passed, str(report)
    assert (report.first_step, report.steps, report.samples) == (0, 5, 5)
    assert report.lineage == [Version(1, 0), Version(2, 3)]


async def test_a_violation_comes_with_the_history_of_its_seq(tmp_path):
    directory = await run_directory(tmp_path)
    await _append(directory, 2, [record_from(2, 6, [3], spans=((2, 5, 4),))])
    report = await audit(directory.root, None)
    assert "seq 3 is applied again" in report.violation
    assert [text.partition(": ")[2] for text in report.history] == [
        "journaled by term 1 in step 4, attempt 0, cursor 4",
        "journaled by term 2 in step 4, attempt 0, cursor 4",
        "journaled by term 2 in step 6, attempt 0, cursor 4",
    ]


async def test_without_the_oldest_segments_the_proof_begins_at_a_checkpoint(tmp_path):
    directory = await run_directory(tmp_path)
    for segment in (directory.journal / "term000001").iterdir():
        segment.unlink()
    report = await audit(directory.root, None)
    assert report.passed, str(report)
    assert (report.first_step, report.steps, report.samples) == (3, 5, 2)
