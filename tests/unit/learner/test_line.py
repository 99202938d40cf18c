"""The surviving line against a plain set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_fakes import record_from

from common.messages import StepRecord, Version
from learner.line import Line


def bare_record(step, seqs, cursor=0):
    return StepRecord(1, step, tuple(seqs), (0,) * len(seqs), cursor, "", (b"",) * len(seqs))


def test_a_seq_is_never_applied_twice():
    line = Line()
    line.apply(record_from(1, 1, [0, 2]))
    with pytest.raises(AssertionError, match="again"):
        line.apply(record_from(1, 2, [2, 3]))
    assert 3 not in line, "a refused record changes nothing"


def test_a_record_that_names_a_seq_twice_is_refused():
    with pytest.raises(AssertionError, match="twice"):
        Line().apply(record_from(1, 1, [4, 4]))


def test_the_low_water_mark_passes_the_dead_without_applying_them():
    line = Line(cursor=4)
    line.apply(bare_record(1, [0, 2]))
    line.bury({1: "poison"})
    assert (line.low, line.applied, 1 in line, line.missing(())) == (3, 2, False, [3])


def test_a_dead_sample_that_is_revived_can_still_be_applied():
    line = Line(cursor=3)
    line.apply(bare_record(1, [0, 2]))
    line.join({1: "poison"}, {})
    line.join({}, {1: 1})
    assert line.missing(()) == [1]
    line.apply(bare_record(2, [1]))
    assert 1 in line
    assert line.applied == 3


def test_an_applied_sample_does_not_die():
    line = Line()
    line.apply(bare_record(1, [0]))
    line.bury({0: "late"})
    assert not line.dead


def test_a_term_begins_where_the_line_stands():
    line = Line()
    line.begin(1)
    line.apply(bare_record(1, [0]))
    line.begin(3)
    assert line.lineage == [Version(1, 0), Version(3, 1)]
    assert line.version == Version(3, 1)


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True), max_size=12), st.sets(st.integers(0, 40), max_size=8))
def test_the_line_agrees_with_a_plain_set(batches, dead):
    line, applied = Line(cursor=41), set()
    buried = set()
    for batch in batches:
        fresh = [seq for seq in batch if seq not in applied | buried]
        if fresh:
            line.apply(bare_record(line.step + 1, fresh))
            applied.update(fresh)
        if dead:
            seq = dead.pop()
            line.bury({seq: "why"})
            buried |= {seq} - applied
    line = Line.from_json(line.to_json())
    assert {seq for seq in range(41) if seq in line} == applied
    assert set(line.dead) == buried
    assert line.applied == len(applied)
    assert line.missing({5, 6}) == [seq for seq in range(41) if seq not in applied | buried | {5, 6}]


def test_a_line_of_a_version_without_further_lives_is_read() -> None:
    values = Line(term=2, step=3, cursor=3, low=3, lineage=[Version(1, 0)]).to_json()
    del values["lives"]
    assert Line.from_json(values).to_json()["lives"] == {}
