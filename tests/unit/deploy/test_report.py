"""The report says what the journal and the metrics say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from recorded_run import RecordedRun, spell_letters

from common.config import RunConfig
from common.errors import ConfigError
from deploy.report.shelf import Selection
from deploy.report.write import write_report


@pytest.fixture
async def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Two steps, an evaluation, and a line that a crash cut off."""
    spell_letters(monkeypatch)
    recorded = RecordedRun(tmp_path)
    for step in (1, 2):
        await recorded.step(step)
    recorded.say("metrics", {"step": 0, "n": 4, "pass_at_1": 0.25})
    recorded.say("metrics", {"step": 3, "samples": 2}, end="")
    recorded.say("evaluations", {"step": 0, "n": 4, "pass_at_1": 0.25})
    return recorded.config


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_series_come_from_the_record_and_a_torn_line_is_left_out(run: RunConfig, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "out.html") == 4
    data = data_of(tmp_path / "out.html")
    assert [(row["step"], row["kl"], row["samples"] / row["wall_s"]) for row in data["steps"]] == [(1, 1.0, 4.0), (2, 0.5, 4.0)]
    assert data["evaluations"] == [{"step": 0, "pass_at_1": 0.25, "n": 4}]
    assert data["staleness"] == [[0, 6], [1, 3]]
    assert data["dead"] == {"count": 1, "letters": [{"seq": 77, "reason": "the teacher said NaN"}]}


def test_a_rollout_is_told_token_by_token_with_the_gap_to_the_weighted_teachers(run: RunConfig, tmp_path: Path) -> None:
    write_report(run, tmp_path / "out.html")
    rollout = data_of(tmp_path / "out.html")["rollouts"][0]
    assert (rollout["seq"], rollout["tokens"], rollout["student"]) == (3, ["B", "C", "D"], [-0.5] * 3)
    assert rollout["gap"] == [0, 2, 0]  # a quarter of the weight is on the teacher that is 8 nats off
    assert rollout["versions"] == [[1, 0, 2, True], [1, 1, 1, False]]
    assert rollout["teachers"][0] == {"name": "calm", "logp": [-0.5] * 3, "top": []}
    assert rollout["teachers"][1]["top"][0] == [["B", -0.1], ["C", -2.5]]


def test_the_largest_gaps_of_a_step_are_chosen_within_the_budget(run: RunConfig, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "out.html", Selection(per_step=1)) == 2
    assert [rollout["seq"] for rollout in data_of(tmp_path / "out.html")["rollouts"]] == [3, 5]
    assert write_report(run, tmp_path / "out.html", Selection(tokens=7)) == 2


def test_a_run_without_a_step_has_no_report(run: RunConfig, tmp_path: Path) -> None:
    (run.directory / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match="has recorded no step yet"):
        write_report(run, tmp_path / "out.html")


def test_a_report_without_the_student_s_tokenizer_shows_ids_and_says_so(run: RunConfig, tmp_path: Path, monkeypatch: Any) -> None:
    import transformers

    def gone(*_: object, **__: object) -> None:
        raise OSError("no such directory")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", gone)
    write_report(run, tmp_path / "out.html")
    data = data_of(tmp_path / "out.html")
    assert "the student's tokenizer cannot be read" in data["complaint"]
    assert data["rollouts"][0]["tokens"] == ["#66", "#67", "#68"]
