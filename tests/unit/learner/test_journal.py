"""Appending, tearing, gaps, and what may be deleted."""

from learner_fakes import record_from

from common.messages import Version
from learner import journal
from learner.journal import Journal


async def written(root, term, steps, segment_bytes=1 << 20):
    log = Journal(root, term, segment_bytes=segment_bytes)
    for step in steps:
        await log.append(record_from(term, step, [2 * step, 2 * step + 1]))
    log.close()
    return sorted((root / f"term{term:06}").iterdir())


def steps(root, term, after=0, until=None):
    return [record.step for record in journal.records(root, term, after, until)]


async def test_what_is_appended_is_read_back(tmp_path):
    await written(tmp_path, 1, range(1, 4))
    records = list(journal.records(tmp_path, 1))
    assert records == [record_from(1, step, [2 * step, 2 * step + 1]) for step in (1, 2, 3)]


async def test_a_torn_frame_ends_the_reading(tmp_path):
    (segment,) = await written(tmp_path, 1, range(1, 4))
    content = segment.read_bytes()
    segment.write_bytes(content[:-7])
    assert steps(tmp_path, 1) == [1, 2]
    segment.write_bytes(content + b"\x10\x00")
    assert steps(tmp_path, 1) == [1, 2, 3]


async def test_a_flipped_byte_ends_the_reading(tmp_path):
    (segment,) = await written(tmp_path, 1, range(1, 4))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    assert steps(tmp_path, 1) == [1]


async def test_reading_goes_over_segments_and_stops_at_a_gap(tmp_path):
    segments = await written(tmp_path, 1, range(1, 5), segment_bytes=1)
    assert len(segments) == 4
    assert steps(tmp_path, 1, after=1) == [2, 3, 4]
    assert steps(tmp_path, 1, after=1, until=3) == [2, 3]
    segments[2].unlink()
    assert steps(tmp_path, 1) == [1, 2]


async def test_records_of_another_term_are_not_seen(tmp_path):
    await written(tmp_path, 1, range(1, 4))
    await written(tmp_path, 2, range(3, 6))
    assert steps(tmp_path, 1) == [1, 2, 3]
    assert steps(tmp_path, 2, after=2) == [3, 4, 5]
    assert journal.terms(tmp_path) == [1, 2]


async def test_only_segments_before_the_oldest_checkpoint_are_deleted(tmp_path):
    await written(tmp_path, 1, range(1, 5), segment_bytes=1)
    await written(tmp_path, 2, range(5, 9), segment_bytes=1)
    await written(tmp_path, 3, range(7, 8))
    journal.trim(tmp_path, Version(2, 6), up_to_term=2)
    assert steps(tmp_path, 1) == []
    assert steps(tmp_path, 2, after=6) == [7, 8]
    assert steps(tmp_path, 2, after=4) == []
    assert steps(tmp_path, 3, after=6) == [7]


async def test_a_rotated_journal_begins_a_segment(tmp_path):
    log = Journal(tmp_path, 1)
    await log.append(record_from(1, 1, [0]))
    log.rotate()
    await log.append(record_from(1, 2, [1]))
    await log.append(record_from(1, 3, [2]))
    log.close()
    assert [path.name for path in sorted((tmp_path / "term000001").iterdir())] == ["segment-00000001.rfx", "segment-00000002.rfx"]


async def test_a_term_whose_segments_are_all_deleted_is_passed_over(tmp_path):
    await written(tmp_path, 1, [1])
    for _ in range(2):
        journal.trim(tmp_path, Version(2, 1), up_to_term=2)
        assert steps(tmp_path, 1) == []
