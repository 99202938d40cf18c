"""The arithmetic behind docs/benchmarks.md."""

from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.observed_run import EVALUATION, STARTUP, TRAINING, Look
from benchmarks.split import by_phase, by_stage, overhead, per_rollout_us, publish_latency, window
from common.pulse import Report

LOOKS = [
    Look(0.0, STARTUP, {}, {}),
    Look(1.0, EVALUATION, {"learner": 2.0}, {"learner": 0.5}),
    Look(2.0, TRAINING, {"learner": 3.0, "server": 0.25}, {"learner": 0.5, "server": 0.25}),
    Look(4.0, TRAINING, {"learner": 5.0, "server": 0.5}, {"learner": 1.0, "server": 0.5}),
]


def report(at: float, process_s: float, *, forward: float, codec: float, samples: float) -> Report:
    return Report(
        role="learner",
        name="learner-a",
        at=at,
        process_s=process_s,
        cpu={"forward": forward, "codec": codec},
        counters={"samples": samples},
    )


REPORTS = [
    report(1.5, 2.5, forward=0.0, codec=0.0, samples=0),  # before training: not in the window
    report(2.5, 3.5, forward=1.0, codec=0.125, samples=100),
    report(3.5, 4.5, forward=1.75, codec=0.25, samples=200),
]


def test_what_passes_between_two_looks_belongs_to_the_phase_of_the_first() -> None:
    assert by_phase(LOOKS) == {
        STARTUP: {"learner": 2.0},
        EVALUATION: {"learner": 1.0, "server": 0.25},
        TRAINING: {"learner": 2.0, "server": 0.25},
    }


def test_stages_are_differences_of_two_reports_within_training() -> None:
    stages = by_stage(window(REPORTS, LOOKS))
    assert stages == {"learner": {"forward": 0.75, "codec": 0.125, "process": 1.0, "rest": 0.125, "samples": 100.0}}


def test_overhead_is_what_is_not_mathematics_and_the_server_altogether() -> None:
    training = by_phase(LOOKS)[TRAINING]
    found = overhead(by_stage(window(REPORTS, LOOKS)), training)
    assert found["roles"]["learner"] == {"cpu_s": 2.0, "maths_s": 1.5, "apart_s": 0.0, "overhead_s": 0.5}
    assert found["share"] == pytest.approx((0.5 + 0.25) / 2.25)


def test_costs_per_rollout_leave_the_mathematics_out() -> None:
    table = per_rollout_us(by_stage(window(REPORTS, LOOKS)), by_phase(LOOKS)[TRAINING], samples=200)
    assert table == {"learner": {"codec": 1250.0, "rest": 1250.0}, "server": {"rest": 1250.0}}


def test_latency_is_from_a_step_to_the_earliest_producer_and_leaves_the_last_step_out(tmp_path: Path) -> None:
    lines = [f'{{"step": {step}, "term": 1, "at": {10.0 * step}, "loss": 1.0}}' for step in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "logs").mkdir()
    said = "INFO producers.engines.torch.thread: samples with new weights  term=1 step={} at={}\n"
    (tmp_path / "logs/producer-0.log").write_text(said.format(1, 10.5) + said.format(3, 30.25) + said.format(4, 90.0))
    (tmp_path / "logs/producer-1.log").write_text(said.format(1, 10.125))
    found = publish_latency(tmp_path)
    assert (found["median_ms"], found["versions"], found["steps"]) == (pytest.approx(187.5), 2, 4)


def test_the_page_has_a_place_for_every_table() -> None:
    text = (Path(__file__).parents[3] / "docs/benchmarks.md").read_text()
    assert [name for name in page.SECTIONS if f"<!-- {name} -->\n" not in text] == []
    assert text.count("<!-- end -->") == len(page.SECTIONS)


def test_writing_a_table_again_replaces_it(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- bus -->\nold\n<!-- end -->\nafter\n<!-- setting -->\n<!-- end -->\n")
    setting = {"date": "a day", "cpu": "a CPU", "cores": 2, "torch": "2", "load": 0.0, "rounds": 1, "steps": 1}
    found = {"setting": setting, "bus": [{"hop": "admit", "tokens": "37", "client": 3.0, "server": 16.0}]}
    page.write(file, found)
    once = file.read_text()
    page.write(file, found)
    assert file.read_text() == once
    assert "| admit | 37 | 3 | 16 |" in once
    assert "old" not in once
