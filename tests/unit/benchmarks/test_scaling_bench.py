"""The benchmark's teachers answer what a real one would be believed, and its verdict is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling import page
from benchmarks.scaling.__main__ import ROOT, prepare, verdict
from benchmarks.scaling.load import TOKENS
from benchmarks.scaling.teachers import MOST, PASS_S, TOKEN_S, ideal_rate, reply
from common.sglang.reply import parse_scores
from common.sglang.request import GenerateRequest

POINT = {"scorers": 8, "share": 0.95, "joined": [{"start": 1.0, "share": 1.2}], "left": []}
ABOUT = {"twice": 0, "dead": 0, "cursor": 10, "applied": 6, "live": 4, "window": 1024, "held_most": 480}


def test_a_reply_passes_the_client_s_checks() -> None:
    ids = np.arange(4, 17, dtype=np.int32)
    request = GenerateRequest(ids, 0, logprob_start=3, top=8)
    scored = parse_scores(json.loads(reply("r", ids.tolist(), 3, 8)), request, 18)
    assert scored.logprobs.shape == (9,)
    assert scored.top_ids.shape == (9, 8)


def test_the_ideal_is_full_passes_one_after_the_other() -> None:
    assert ideal_rate(TOKENS) == pytest.approx(MOST / (PASS_S + MOST * TOKENS * TOKEN_S))


def test_the_window_holds_twice_what_sixteen_scorers_do(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    assert config.window >= 2 * 16 * 2 * (config.scorer.lease_tokens // TOKENS)


@pytest.mark.parametrize(
    ("point", "about", "complaint"),
    [
        ({}, {}, ""),
        ({"share": 0.89}, {}, "reach 0.89"),
        ({"share": 0.5, "scorers": 16}, {}, ""),
        ({"joined": [{"start": 1.0, "share": 2.3}]}, {}, "took 2.3 s"),
        ({}, {"twice": 1}, "applied twice"),
        ({}, {"live": 3}, "lost"),
        ({}, {"window": 900}, "too small"),
    ],
)
def test_the_verdict_names_what_is_not_as_it_should_be(point: dict, about: dict, complaint: str) -> None:
    complaints = verdict({"points": [POINT | point], "setting": ABOUT | about})
    assert bool(complaints) == bool(complaint)
    assert complaint in "".join(complaints)


def test_the_page_has_a_place_for_every_section() -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    assert all(f"<!-- {name} -->" in text for name in page.SECTIONS)
