"""The report says what the journal and the metrics say, and shows text as text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.codec import encode
from common.config import RunConfig, parse_config
from common.errors import ConfigError
from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, StepRecord, TeacherScore, TeacherShare, Ticket, Version
from deploy.report.rollouts import Selection
from deploy.report.write import write_report
from learner import checkpoint
from learner.journal import Journal
from learner.line import Line

HOSTILE = "</script><img src=x onerror=boom()>"


class LetterTokenizer:
    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return "".join(HOSTILE if token == 0 else chr(token) for token in ids)


def scored(seq: int, gap: float) -> ScoredRollout:
    shares = (TeacherShare("calm", 3.0), TeacherShare("stern", 1.0))
    prompt = np.array([0, 65], np.int32)
    ticket = Ticket(seq, 0, str(seq), prompt, Sampling(1.0, 8, ()), shares, Version(1, 0))
    spans = (Span(1, 0, 2, True), Span(1, 1, 1, False))
    completion = Completion(np.array([66, 67, 68], np.int32), np.full(3, -0.5, np.float32), spans, "stop")
    top_ids, top_logp = np.array([[66, 67]] * 3, np.int32), np.array([[-0.1, -2.5]] * 3, np.float32)
    calm = TeacherScore("calm", "d", np.full(3, -0.5, np.float32))
    stern = TeacherScore("stern", "d", np.array([-0.5, -0.5 - 4 * gap, -0.5], np.float32), top_ids, top_logp)
    return ScoredRollout(Rollout(ticket, completion), (calm, stern))


@pytest.fixture
async def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Two steps of two rollouts each; the second of a step has the larger gap."""
    import transformers

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: LetterTokenizer())
    teachers = {"calm": {"path": "t"}, "stern": {"path": "t"}}
    run = {"name": "r", "dir": str(tmp_path)}
    values = {"run": run, "model": {"student": "s"}, "teachers": teachers, "data": {"prompts": "p"}, "evaluation": {"prompts": 0}}
    config = parse_config(values)
    config.directory.mkdir()
    journal = Journal(config.directory / "journal", 1)
    for step in (1, 2):
        payloads = tuple(encode(scored(2 * step + index, gap=step + index)) for index in (0, 1))
        await journal.append(StepRecord(1, step, (2 * step, 2 * step + 1), (0, 0), 2 * step + 2, "", payloads))
    journal.close()
    line = Line(term=1, step=2, cursor=6, low=6, lineage=[Version(1, 0)])
    checkpoint.save(config.directory / "checkpoints", line.to_json(), {}, lambda _: None)
    lines = [{"step": step, "samples": 2, "wall_s": 0.5, "kl": 1 / step, "staleness": {"0": 3, "1": step}} for step in (1, 2)]
    text = "\n".join(json.dumps(line) for line in [*lines, {"step": 0, "n": 4, "pass_at_1": 0.25}]) + '\n{"step": 3, "sam'
    (config.directory / "metrics.jsonl").write_text(text)
    (config.directory / "evaluations.jsonl").write_text(json.dumps({"step": 0, "n": 4, "pass_at_1": 0.25}) + "\n")
    return config


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_series_come_from_the_record_and_a_torn_line_is_left_out(run: RunConfig, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "out.html") == 4
    data = data_of(tmp_path / "out.html")
    assert data["kl"] == [[1, 1.0], [2, 0.5]]
    assert data["rate"] == [[1, 4.0], [2, 4.0]]
    assert data["accuracy"] == [[0, 0.25]]
    assert data["staleness"] == [[0, 6], [1, 3]]


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


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a Chromium in PATH (Debian: apt install chromium)")
def test_a_browser_shows_text_as_text_and_reports_no_error(run: RunConfig, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    write_report(run, tmp_path / "out.html")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 800})
            errors: list[str] = []
            page.on("console", lambda message, errors=errors: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.goto((tmp_path / "out.html").as_uri())
            assert HOSTILE in page.locator("#text").inner_text()
            assert page.locator("img").count() == 0
            page.locator(".token").first.focus()
            page.keyboard.press("ArrowRight")
            assert page.locator("#detail code").first.inner_text() == "C"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert errors == []
        browser.close()
