"""The audit goes red for every kind of broken promise, with a sentence that names it; and not for what a crash leaves behind."""

import json
from dataclasses import replace

import pytest
from checker_cases import Run, fresh, line_after, look, over_two_terms, record_of, sound, sound_records

from deploy.checker.checkpoints import Version


def test_a_sound_run_passes_with_its_figures(tmp_path):
    report = sound(tmp_path / "r").audit(look(cursor=8, live=[6], dead=[7]))
    assert report.passed, str(report)
    assert (report.steps, report.proved_steps, report.samples, report.cursor, report.live, report.dead) == (3, 3, 6, 8, 1, 1)
    assert dict(report.staleness) == {0: 24}
    assert "every sample was applied once" in str(report)


RECORDS = [
    ("a sample again in a later step", lambda r: [*r[:2], record_of(1, 3, [0, 5])], "seq 0 is applied again in step 3 of term 1"),
    ("a sample twice in one step", lambda r: [*r[:2], record_of(1, 3, [4, 4])], "seq 4 is applied again in step 3"),
    ("never admitted", lambda r: [r[0], record_of(1, 2, [2, 3], cursor=3), r[2]], "seq 3 of step 2 of term 1 was never admitted"),
    ("the cursor goes back", lambda r: [replace(r[0], cursor=9), *r[1:]], "the cursor goes back from 9 to 4"),
    ("another payload", lambda r: [r[0], replace(r[1], digest="x"), r[2]], "step 2 of term 1: its payloads do not have the digest"),
    ("a payload of another seq", lambda r: [r[0], replace(r[1], seqs=(2, 9), cursor=10), r[2]], "names seq 9 but carries seq 3"),
    ("a step twice", lambda r: [*r[:2], record_of(1, 2, [4, 5])], "step 2 of term 1 follows step 2"),
    (
        "weights from the future",
        lambda r: [*r[:2], record_of(1, 3, [4, 5], spans=[(1, 3, 4)])],
        "weights of step 3 of term 1, which came later",
    ),
    ("weights of a later term", lambda r: [*r[:2], record_of(1, 3, [4, 5], spans=[(2, 0, 4)])], "of term 2, which came later"),
    (
        "weights that go back",
        lambda r: [*r[:2], record_of(1, 3, [4, 5], spans=[(1, 2, 2), (1, 1, 2)])],
        "goes back from the weights of (1, 2)",
    ),
    ("too stale", lambda r: [*r[:2], record_of(1, 3, [4, 5], spans=[(1, 0, 4)])], "has 8 tokens of a staleness up to 2, beyond 1"),
    (
        "left out, says it",
        lambda r: [r[0], replace(r[1], masked_tokens=1), r[2]],
        "has 0 tokens of a staleness up to 0, beyond 1, and counts 1",
    ),
]


@pytest.mark.parametrize(("change", "said"), [case[1:] for case in RECORDS], ids=[case[0] for case in RECORDS])
def test_every_lie_of_a_record_is_named(tmp_path, change, said):
    run = Run(tmp_path / "r")
    run.keep(fresh(1))
    run.write(1, change(sound_records()))
    report = run.audit()
    assert said in report.violation, str(report)


def test_tokens_beyond_the_bound_pass_where_their_exception_is_counted(tmp_path):
    run = Run(tmp_path / "r")
    run.keep(fresh(1))
    late = record_of(1, 3, [4, 5], spans=[(1, 0, 2), (1, 2, 2)], mask=[1, 0, 1, 1], masked_tokens=2)
    run.write(1, [*sound_records()[:2], late])
    report = run.audit()
    assert report.passed, str(report)
    assert (dict(report.staleness), report.masked_tokens) == ({0: 16 + 4}, 2)


def test_a_line_over_two_terms_is_followed_and_the_dead_terms_record_is_a_ghost(tmp_path):
    report = over_two_terms(tmp_path / "r").audit()
    assert report.passed, str(report)
    assert (report.steps, report.proved_steps, report.samples, report.ghosts) == (5, 5, 5, 1)
    assert tuple(report.lineage) == (Version(1, 0), Version(2, 3))


def test_a_double_application_across_a_change_of_term_comes_with_its_history(tmp_path):
    run = over_two_terms(tmp_path / "r")
    run.write(2, [record_of(2, 6, [1], cursor=5)])
    report = run.audit()
    assert "seq 1 is applied again in step 6 of term 2" in report.violation
    assert list(report.history) == [
        "  seq 1: journaled by term 1 in step 2, attempt 0, cursor 2",
        "  seq 1: journaled by term 2 in step 6, attempt 0, cursor 5",
        "  seq 1: in the list of term000001-step00000002, term000002-step00000003",
    ]


def test_the_history_says_which_worker_handed_which_entry_off_and_when(tmp_path):
    run = over_two_terms(tmp_path / "r")
    run.write(2, [record_of(2, 6, [4], cursor=5, origins=("1700000000123-4 scorer-a1",))])
    assert "entry 1700000000123-4 handed off by scorer-a1 at 2023-11-14T22:13:20.123+00:00" in run.audit().history[-1]


def test_a_zombies_record_in_the_survivors_journal_is_named(tmp_path):
    run = over_two_terms(tmp_path / "r")
    run.write(1, [record_of(1, 6, [5])], into=2)
    assert "the journal of term 2 holds step 6 of term 1, another learner's" in run.audit().violation


def test_a_zombies_effect_in_the_survivors_checkpoint_is_named(tmp_path):
    run = over_two_terms(tmp_path / "r")
    records = [record_of(1, step, [step - 1]) for step in (1, 2, 3)]
    line = line_after(records)
    line.begin(2)
    for step, seq in ((4, 3), (5, 7)):
        line.apply(record_of(2, step, [seq]))
    run.keep(line)
    report = run.audit()
    assert report.violation.endswith("lacks seq 4, against the journal")
    assert any("journaled by term 2 in step 5" in text for text in report.history)


def test_a_lineage_that_goes_back_is_named(tmp_path):
    run = Run(tmp_path / "r")
    line = line_after(sound_records())
    line.lineage = [Version(2, 0), Version(1, 0)]
    run.keep(line)
    assert "goes back from (2, 0) to (1, 0): versions must grow" in run.audit().violation


SERVERS = [
    ("out of balance", look(cursor=7), "the ledger does not balance: cursor 7 is not live 0 + applied 6 + dead 0"),
    ("a lost seq", look(cursor=7, applied=7), "seq 6 is lost: below the cursor 7, and neither applied nor live nor dead"),
    ("applied and dead", look(cursor=6, dead=[2], applied=5), "seq 2 is applied and dead"),
    ("applied and live", look(cursor=6, live=[0], applied=5), "seq 0 is applied and still live, although the learner has reconciled"),
    ("live and dead", look(cursor=8, live=[6], dead=[6], applied=6), "seq 6 is live and dead"),
    ("live without an entry", look(cursor=7, live=[6], adrift=frozenset([6])), "seq 6 is lost: it is said to be live as 6000-0 in tickets"),
    ("a cursor gone back", look(cursor=4, applied=4), "the cursor goes back from 6 in the journal to 4"),
    ("live beyond the cursor", look(cursor=7, live=[6, 8, 9], applied=4), "the server counts 4 samples as applied, the journal 6"),
    ("a version that goes back", look(weights=(Version(1, 3), Version(1, 2))), "the weights log goes back from version (1, 3) to (1, 2)"),
]


@pytest.mark.parametrize(("seen", "said"), [case[1:] for case in SERVERS], ids=[case[0] for case in SERVERS])
def test_every_lie_of_a_server_is_named(tmp_path, seen, said):
    report = sound(tmp_path / "r").audit(seen)
    assert said in report.violation, str(report)


def test_a_dead_sample_without_a_reason_is_named(tmp_path):
    seen = look(cursor=7, dead=[6])
    seen.dead[6] = seen.dead[6]._replace(reason="")
    assert sound(tmp_path / "r").audit(seen).violation == "seq 6 is dead without a reason"


def test_the_last_record_may_be_pending_settle(tmp_path):
    report = sound(tmp_path / "r").audit(look(live=[4, 5], applied=4))
    assert report.passed, str(report)
    assert "2 samples of the last record are pending settle" in report.notes


def test_before_the_reconcile_what_a_rollback_brought_back_is_listed_and_not_red(tmp_path):
    report = sound(tmp_path / "r").audit(look(cursor=5, live=[0, 1, 2, 3, 4], applied=0, reconciled=False))
    assert report.passed, str(report)
    assert any("5 applied samples are live there (pending settle) and 0 are to be admitted again" in note for note in report.notes)


def test_a_finished_runs_result_must_agree(tmp_path):
    run = sound(tmp_path / "r")
    write_result(run, admitted=6, applied=6)
    assert run.audit().passed, str(run.audit())
    assert "applied and still live" in run.audit(look(live=[4, 5], applied=4)).violation
    write_result(run, admitted=7, applied=7)
    assert "result.json says applied 7, the journal has 6" in run.audit().violation
    write_result(run, admitted=7, applied=6)
    assert "does not balance" in run.audit().violation
    write_result(run, admitted=6, applied=6, histogram={"0": 20})
    assert "result.json says staleness {'0': 20}" in run.audit().violation


def write_result(run, *, admitted, applied, histogram=None):
    values = {
        "ledger": {"admitted": admitted, "applied": applied, "live": 0, "dead": 0},
        "dead": {},
        "samples": applied,
        "steps": 3,
        "staleness": {"histogram": histogram or {"0": 24}, "masked_tokens": 0},
    }
    (run.root / "result.json").write_text(json.dumps(values))


def test_a_torn_last_record_is_what_a_crash_leaves_and_not_red(tmp_path):
    run = over_two_terms(tmp_path / "r")
    segment = max((run.journal / "term000002").iterdir())
    segment.write_bytes(segment.read_bytes()[:-7])
    report = run.audit()
    assert report.passed, str(report)
    assert (report.steps, report.samples) == (4, 4)
    assert any(f"the journal ends in a torn record: {segment} at byte" in note for note in report.notes)


def test_a_damaged_record_is_named_and_a_checkpoint_speaks_for_its_step(tmp_path):
    run = sound(tmp_path / "r")
    segment = next((run.journal / "term000001").iterdir())
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    report = run.audit(look())
    assert report.passed, str(report)
    assert (report.steps, report.proved_steps) == (3, 1)
    assert any(str(segment) in note and "term000001-step00000003 alone speaks for them" in note for note in report.notes)


def test_without_the_oldest_segments_the_proof_begins_at_a_checkpoint(tmp_path):
    run = over_two_terms(tmp_path / "r")
    for segment in (run.journal / "term000001").iterdir():
        segment.unlink()
    report = run.audit()
    assert report.passed, str(report)
    assert (report.steps, report.proved_steps, report.samples) == (5, 2, 5)


def test_a_damaged_checkpoint_is_named_and_not_believed(tmp_path):
    run = sound(tmp_path / "r")
    newest = run.checkpoints / "term000001-step00000003"
    (newest / "line.json").write_text((newest / "line.json").read_text().replace('"cursor": 6', '"cursor": 9'))
    report = run.audit()
    assert report.passed, str(report)
    assert any("line.json has another digest" in note for note in report.notes)


def test_without_any_checkpoint_nothing_is_proved(tmp_path):
    assert "nothing can be proved" in Run(tmp_path / "r").audit().violation
