import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.codec import encode
from common.config import RunConfig, load_config
from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, StepRecord, TeacherScore, TeacherShare, Ticket, Version
from deploy.__main__ import main
from deploy.plan.measured import measured
from learner import checkpoint
from learner.directory import RunDirectory
from learner.journal import Journal
from learner.line import Line

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/arithmetic/run.toml"
RATES = ["student.tokens_per_s=30000", "teacher.tokens_per_s=50000", "learner.tokens_per_s=30000", "answers.mean=36"]
RESULT = {
    "samples": 1000,
    "tokens": 36000,
    "processed_tokens": 51000,
    "evaluations": [{"step": 0, "n": 500}, {"step": 20, "n": 500}],
    "cpu_s": {"learner": 6.0, "producer": 7.0, "scorer": 4.0, "server": 0.5},
    "cpu_stages": {
        "learner": {"forward": 1.0, "backward": 2.0, "startup": 2.0, "checkpoint": 0.4},
        "producer": {"decode": 2.0, "prefill": 1.0, "startup": 3.0},
        "scorer": {"forward": 1.0, "startup": 2.0},
    },
}


def plan(*arguments: str) -> int:
    return main(["plan", str(EXAMPLE), "--set", "learner.steps=20", *arguments])


def rated(*given: str) -> list[str]:
    return [part for one in (*RATES, *given) for part in ("--rate", one)]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(EXAMPLE, [f"run.dir={tmp_path}", "run.name=measured"])


@pytest.fixture
def run(config: RunConfig) -> Path:
    """The directory of a finished run, as far as a plan reads it."""
    root = config.directory
    root.mkdir()
    (root / "config.json").write_text("{}")
    text = EXAMPLE.read_text().replace('name = "arithmetic"', f'name = "measured"\ndir = "{root.parent}"')
    (root / "config.toml").write_text(text.replace('"models/', f'"{EXAMPLE.parent}/models/'))
    (root / "result.json").write_text(json.dumps(RESULT))
    return root


async def test_a_runs_rates_are_its_tokens_by_its_cpu_seconds_of_mathematics(config: RunConfig, run: Path) -> None:
    values = measured(config)
    assert values["learner"]["tokens_per_s"] == pytest.approx(51000 / 3.0)
    assert values["learner"]["beside"] == pytest.approx((6.0 - 2.4) / 3.0 - 1)
    assert values["student"]["tokens_per_s"] == pytest.approx((36000 + 1000 * 36) / 3.0)  # the evaluations' answers as well
    assert values["teacher"]["tokens_per_s"] == pytest.approx(51000 / 1.0)
    assert values["answers"] == {"mean": 36.0, "prompt_tokens": 15}
    assert values["server_s"] == pytest.approx(0.0005)


async def test_a_runs_lengths_come_from_its_journal_and_its_latency_from_the_logs(config: RunConfig, run: Path) -> None:
    directory = RunDirectory(run)
    slip, prompt = (TeacherShare("arithmetic", 1.0),), np.zeros(9, np.int32)
    line = Line()
    line.begin(1)
    checkpoint.save(directory.checkpoints, line.to_json(), {}, lambda path: (path / "model").write_bytes(b"x"))
    journal = Journal(directory.journal, 1)
    for seq, length in enumerate((3, 5)):
        ticket = Ticket(seq, 0, "", prompt, Sampling(1.0, 8, ()), slip, Version(1, 0))
        logp_T = np.full(length, -1, np.float32)
        rollout = Rollout(ticket, Completion(np.zeros(length, np.int32), logp_T, (Span(1, 0, length, True),), "stop"))
        payload = encode(ScoredRollout(rollout, (TeacherScore("arithmetic", "d", logp_T),)))
        await journal.append(StepRecord(1, seq + 1, (seq,), (0,), seq + 1, "", (payload,)))
    journal.close()
    directory.metrics.write_text('{"step": 7, "term": 1, "at": 100.0, "loss": 1.0}\n')
    (run / "logs").mkdir()
    (run / "logs/producer-0.log").write_text("INFO x: samples with new weights  term=1 step=7 at=100.500\n")
    values = measured(config)
    assert values["answers"] == {"lengths": [3, 5], "prompt_tokens": 9}
    assert values["weights"] == {"put_s": 0.25, "fetch_s": 0.25}


def test_a_plan_from_a_run_recommends_and_shows_what_comes_before_and_after(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--from-run", str(run)) == 0
    out = capsys.readouterr().out
    assert re.search(r"take +now|take", out)
    for part in ("take producer.count = 1 and scorer.count = 1", "staleness of trained tokens", "Redis there:", "weights there: "):
        assert part in out


def test_json_has_the_choice_its_neighbours_and_the_rates(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*rated("teacher.tokens_per_s=6000"), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    layouts = [(row["layout"]["producers"], row["layout"]["scorers"]) for row in made["rows"]]
    best = (made["recommended"]["producers"], made["recommended"]["scorers"])
    assert best[1] >= 5  # the learner takes 30,000 tokens a second
    assert {best, (best[0], best[1] - 1), (best[0], best[1] + 1), (1, 1)} <= set(layouts)
    assert made["rates"]["teacher"]["tokens_per_s"] == 6000
    assert made["version_bytes"] > 800_000


def test_a_file_of_rates_is_read_and_rate_goes_over_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rates.toml"
    file.write_text(
        "student = { tokens_per_s = 30000 }\nteacher = { tokens_per_s = 1 }\nlearner = { tokens_per_s = 30000 }\n"
        "[answers]\nprompt_tokens = 15\npercentiles = { 50 = 36, 90 = 50 }\n"
    )
    assert plan("--rates", str(file), "--rate", "teacher.tokens_per_s=50000", "--json") == 0
    rates = json.loads(capsys.readouterr().out)["rates"]
    assert rates["teacher"]["tokens_per_s"] == 50000
    assert rates["answers"]["percentiles"] == {"50": 36, "90": 50}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "student.tokens_per_s is not known: give it"),
        (["--rate", "student.tokens_per_s=1", "--rate", "learner.tokens_per_s=1"], "teacher.tokens_per_s is not known"),
        (rated()[:-2], "how long answers are is not known: give --rate answers.mean=TOKENS"),
        (rated("student.tokens_per_s=0"), "student.tokens_per_s = 0 is wrong: input should be greater than 0"),
        (rated("teacher.tokens=3"), "unknown key teacher.tokens: did you mean teacher.tokens_per_s?"),
        (rated("teachers.tokens_per_s=3"), "unknown key teachers: did you mean teacher?"),
        (rated("cores=many"), "--rate 'cores=many' is not a number"),
        (rated("cores"), "--rate 'cores' is not KEY=VALUE"),
        (rated("answers.mean=100"), "answers.mean = 100 is more than sampling.max_new_tokens = 56"),
        (["--rates", "nowhere.toml"], "cannot read nowhere.toml"),
        (["--from-run", "nowhere"], "there is no configuration file nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--set", f"run.dir={tmp_path}", *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("reflux: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_a_run_that_has_not_ended_has_nothing_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "result.json").unlink()
    assert plan("--from-run", str(run)) == 2
    assert "has no measurements yet: they are written when the run ends" in capsys.readouterr().err


def test_a_run_whose_servers_sample_needs_their_rates(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1, "term": 1, "at": 1.0, "loss": 1.0, "processed": 3000, "seconds": 0.5}\n')
    served = (run / "config.toml").read_text() + '[producer]\nkind = "sglang"\nurls = ["http://127.0.0.1:1"]\n'
    (run / "config.toml").write_text(served)
    assert plan("--from-run", str(run)) == 2
    assert "student.tokens_per_s is not known" in capsys.readouterr().err
    assert plan("--from-run", str(run), "--rate", "student.tokens_per_s=30000", "--json") == 0
    rates = json.loads(capsys.readouterr().out)["rates"]
    assert rates["learner"]["tokens_per_s"] == pytest.approx(6000)  # by the clock: nobody shares its device


def test_a_student_that_is_not_here_needs_its_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--set", f"model.student={tmp_path}", *rated()) == 2
    assert "give --rate weights.bytes=N" in capsys.readouterr().err
