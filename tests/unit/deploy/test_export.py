import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from common.codec import encode
from common.config import RunConfig, parse_config
from common.errors import ConfigError
from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, StepRecord, TeacherScore, TeacherShare, Ticket, Version
from deploy.export import export_rollouts
from learner import checkpoint
from learner.journal import Journal
from learner.line import Line


class LetterTokenizer:
    """Id 65 is A."""

    def decode(self, ids: np.ndarray, skip_special_tokens: bool) -> str:
        return "".join(chr(token) for token in ids)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    import transformers

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: LetterTokenizer())
    values = {
        "run": {"name": "r", "dir": str(tmp_path)},
        "model": {"student": "s"},
        "teachers": {"t": {"path": "t"}},
        "data": {"prompts": "p"},
        "evaluation": {"prompts": 0},
    }
    config = parse_config(values)
    config.directory.mkdir()
    return config


def scored(seq: int, term: int) -> ScoredRollout:
    sampling = Sampling(1.0, 8, (0,))
    ticket = Ticket(seq, 0, str(seq), np.array([65, 66], np.int32), sampling, (TeacherShare("t", 1.0),), Version(term, 0), {"k": "v"})
    spans = (Span(term, 0, 2, True), Span(term, 1, 1, False))
    completion = Completion(np.array([67, 68, 69], np.int32), np.full(3, -0.5, np.float32), spans, "stop")
    return ScoredRollout(Rollout(ticket, completion), (TeacherScore("t", "digest", np.full(3, -0.25, np.float32)),))


def record(term: int, step: int, seq: int) -> StepRecord:
    return StepRecord(term, step, (seq,), (0,), seq + 1, "", (encode(scored(seq, term)),))


async def write(directory: Path, records: list[StepRecord], line: Line) -> None:
    for term in sorted({one.term for one in records}):
        journal = Journal(directory / "journal", term)
        for one in records:
            if one.term == term:
                await journal.append(one)
        journal.close()
    checkpoint.save(directory / "checkpoints", line.to_json(), {}, lambda _: None)


async def test_only_what_the_surviving_line_trained_is_exported_with_text_logprobs_and_versions(config: RunConfig) -> None:
    lost = record(1, 3, 7)  # term 1 went on to step 3, but term 2 began at step 2
    records = [record(1, 1, 0), record(1, 2, 1), lost, record(2, 3, 2)]
    line = Line(term=2, step=3, cursor=3, low=3, lineage=[Version(1, 0), Version(2, 2)])
    await write(config.directory, records, line)
    out = config.directory / "out.parquet"
    assert export_rollouts(config, out) == 3
    rows = parquet.read_table(out).to_pylist()
    assert [(row["term"], row["step"], row["seq"]) for row in rows] == [(1, 1, 0), (1, 2, 1), (2, 3, 2)]
    assert (rows[0]["prompt"], rows[0]["response"], rows[0]["finish_reason"]) == ("AB", "CDE", "stop")
    assert rows[0]["logprobs"] == [-0.5] * 3
    assert rows[0]["versions"][1] == {"term": 1, "step": 1, "tokens": 1, "exact": False}
    assert rows[0]["scores"][0] == {"teacher": "t", "digest": "digest", "logprobs": [-0.25] * 3}
    assert json.dumps(rows[0]["metadata"]) == '[["k", "v"]]'


def test_a_run_without_steps_has_nothing_to_export(config: RunConfig) -> None:
    out = config.directory / "out.parquet"
    with pytest.raises(ConfigError, match="no journaled steps yet"):
        export_rollouts(config, out)
    assert list(config.directory.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"cannot write /proc/nowhere .*: name another file with --out"):
        export_rollouts(config, Path("/proc/nowhere/out.parquet"))
