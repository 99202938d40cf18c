"""A sample's life in the trace is what journal and metrics say; its spans nest and follow one another."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from recorded_run import RecordedRun, scored

from common.codec import encode
from common.errors import ConfigError
from common.messages import Hop, StepRecord
from deploy.__main__ import main
from deploy.trace import write_trace

NOW = 1_700_000_000.0


@pytest.fixture
async def run(tmp_path: Path) -> RecordedRun:
    """Step n ends at NOW + 10 n and takes 2 s; sample 2n is handed off 5 s before its end, 2n + 1 by a clock that runs ahead."""
    recorded = RecordedRun(tmp_path)
    for step in (1, 2, 3):
        at = NOW + 10 * step
        origins = (f"{round((at - 5) * 1000)}-0 scorer-a", f"{round((at + 5) * 1000)}-0 scorer-b")
        seqs = (2 * step, 2 * step + 1)
        payloads = tuple(encode(scored(seq, gap=1.0)) for seq in seqs)
        await recorded.journal.append(StepRecord(1, step, seqs, (0, 0), 9, "", payloads, origins=origins))
        recorded.say("metrics", {"step": step, "term": 1, "at": at, "seconds": 2.0, "loss": 0.5})
    return recorded


def spans_of(file: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(file.read_text())["traceEvents"] if event["ph"] == "X"]


def test_a_samples_spans_are_at_the_times_on_record(run: RecordedRun, tmp_path: Path) -> None:
    assert write_trace(run.config, [4], tmp_path / "t.json") == 1
    whole, flight, waits, trained = [span for span in spans_of(tmp_path / "t.json") if span["pid"] == 1]
    assert (whole["name"], trained["name"]) == ("sample 4", "trained in step 2")
    assert (waits["ts"], waits["dur"]) == (round((NOW + 15) * 1e6), 3_000_000)
    assert (trained["ts"], trained["dur"]) == (round((NOW + 18) * 1e6), 2_000_000)
    assert flight["ts"] == whole["ts"]
    assert (whole["args"]["scorer"], whole["args"]["versions"]) == ("scorer-a", [[1, 0, 2, True], [1, 1, 1, False]])


def hop(worker: str, *seconds: float) -> Hop:
    return Hop(worker, *(round((NOW + second) * 1000) for second in seconds))


async def with_hops(tmp_path: Path, *hops: Hop) -> list[dict[str, Any]]:
    """The spans of a sample whose step ran from NOW + 8 to NOW + 10."""
    recorded = RecordedRun(tmp_path)
    payload = encode(scored(2, gap=1.0, hops=hops))
    await recorded.journal.append(StepRecord(1, 1, (2,), (0,), 9, "", (payload,), origins=(f"{round((NOW + 5) * 1000)}-0 scorer-b",)))
    recorded.say("metrics", {"step": 1, "term": 1, "at": NOW + 10, "seconds": 2.0, "loss": 0.5})
    assert write_trace(recorded.config, [2], tmp_path / "t.json") == 1
    return [span for span in spans_of(tmp_path / "t.json") if span["pid"] == 1]


def times(spans: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(round(span["ts"] / 1e6 - NOW, 3), round(span["dur"] / 1e6, 3)) for span in spans]


async def test_every_stage_of_a_samples_life_is_a_span(tmp_path: Path) -> None:
    hops = (hop("producer-a", 0, 1, 2), hop("scorer-a", 2.1, 3, 3.5), hop("scorer-b", 3.6, 4, 4.9))
    whole, *parts = await with_hops(tmp_path, *hops)
    assert times([whole]) == [(0, 10)]
    assert [span["name"] for span in parts] == [
        "waits for a producer", "sampled by producer-a", "waits for a scorer of calm", "scored by scorer-a",
        "waits for a scorer of stern", "scored by scorer-b", "waits for its batch, journaled, settled", "trained in step 1",
    ]  # fmt: skip
    assert times(parts) == [(0, 1), (1, 1), (2, 1), (3, 0.5), (3.5, 0.5), (4, 0.9), (4.9, 3.1), (8, 2)]
    assert parts[1]["args"]["versions"] == [[1, 0, 2, True], [1, 1, 1, False]]
    assert not any("moved_ms" in span["args"] for span in parts)


async def test_a_clock_that_runs_ahead_makes_no_negative_span_and_is_told(tmp_path: Path) -> None:
    hops = (hop("producer-a", 0, 7, 8), hop("scorer-a", 2.1, 3, 3.5), hop("scorer-b", 3.6, 4, 4.9))
    _, *parts = await with_hops(tmp_path, *hops)
    assert times(parts) == [(0, 3), (3, 0), (3, 0), (3, 0.5), (3.5, 0.5), (4, 0.9), (4.9, 3.1), (8, 2)]
    assert [span["args"].get("moved_ms") for span in parts] == [None, 4000, 5000, None, None, None, None, None]


def test_spans_nest_and_follow_one_another_whatever_the_clocks_say(run: RecordedRun, tmp_path: Path) -> None:
    assert write_trace(run.config, [], tmp_path / "t.json") == 6
    for seq in range(2, 8):
        whole, *parts = [span for span in spans_of(tmp_path / "t.json") if (span["pid"], span["tid"]) == (1, seq)]
        assert len(parts) == 3
        assert all(span["dur"] >= 0 for span in parts)
        assert parts[0]["ts"] == whole["ts"]
        assert sum(span["dur"] for span in parts) == whole["dur"]
        for before, after in pairwise(parts):
            assert before["ts"] + before["dur"] == after["ts"]


def test_a_sample_that_is_not_there_is_one_sentence(run: RecordedRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sample 50 is on no record"):
        write_trace(run.config, [4, 50], tmp_path / "t.json")
    with pytest.raises(ConfigError, match=r"sample 77 was given up \(the teacher said NaN\)"):
        write_trace(run.config, [77], tmp_path / "t.json")
    with pytest.raises(ConfigError, match="cannot write"):
        write_trace(run.config, [4], tmp_path / "no" / "where" / "t.json")


def test_a_run_without_steps_and_no_run_at_all_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no applied samples"):
        write_trace(RecordedRun(tmp_path).config, [], tmp_path / "t.json")
    (tmp_path / "empty").mkdir()
    assert main(["trace", str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
