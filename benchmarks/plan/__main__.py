"""What `reflux plan` says beside what real runs do: `make bench-plan`.

Every row is a real run of the example (own processes, Redis, journal, Megatron) whose students and teachers are servers with the service
times of a device and whose learner sleeps through the rest of a device's step, so that the machine's cores decide nothing. The plan is told
the servers' times as they were set; the learner's mean step, the publications' latency and the answers' lengths come from the run, its
throughput never does. Throughput is counted from the step at which the plan begins to count. --write-docs puts the table into docs/plan.md,
the figures into docs/plan.json.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON values

from common.config import RunConfig, load_config
from deploy.plan.measured import measured
from deploy.plan.rates import rates_from
from deploy.plan.show import mean_staleness
from deploy.plan.simulate import Layout, Outcome, setting_of, simulate
from deploy.plan.sizes import version_bytes
from deploy.target import open_target
from learner.directory import RunDirectory
from learner.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/arithmetic"
FIXED_S, EACH_S = 0.03, 0.002  # of a decode step: 9 answers of the example a second with 32 in flight
SLOTS = 32
PLACE = re.compile(r"(<!-- validation -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Case:
    """A run. `rate`: tokens a second of one teacher."""

    name: str
    students: int
    teachers: int
    rate: float
    pace_s: float
    settings: tuple[str, ...] = ()


CASES = (
    Case("all stages about equally slow", 1, 1, 600.0, 1.3),
    Case("two students, two teachers", 2, 2, 600.0, 1.3),
    Case("S = 0", 2, 2, 600.0, 0.8, ("learner.max_staleness=0",)),
    Case("slow teacher", 2, 1, 350.0, 0.6),
)


@contextmanager
def server(model: Path, rate: float) -> Iterator[str]:
    """The address of a timed stand-in."""
    command = [sys.executable, "-m", "benchmarks.plan.timed", "--model", str(model)]
    command += ["--fixed", str(FIXED_S), "--each", str(EACH_S), "--rate", str(rate)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def run(case: Case, steps: int) -> RunConfig:
    """The finished run's configuration."""
    number = CASES.index(case)
    with ExitStack() as stack:
        students = [stack.enter_context(server(EXAMPLE / "models/student", 1e9)) for _ in range(case.students)]
        teachers = [stack.enter_context(server(EXAMPLE / "models/teacher", case.rate)) for _ in range(case.teachers)]
        settings = [
            f"run.name=plan-{number}", f"run.dir={ROOT / 'runs'}", f"learner.steps={steps}", "evaluation.prompts=0",
            "loss.kind=python:benchmarks.plan.paced:topk_reverse_kl", "producer.kind=sglang", f"producer.urls={json.dumps(students)}",
            "teachers.arithmetic.kind=sglang", f"teachers.arithmetic.urls={json.dumps(teachers)}", "optimizer.lr=1e-5",
            "learner.batch_size=16", f"producer.slots={SLOTS}", "scorer.lease_tokens=2048", "scorer.batch_tokens=1024", *case.settings,
        ]  # fmt: skip
        config = load_config(EXAMPLE / "run.toml", settings)
        shutil.rmtree(config.directory, ignore_errors=True)
        command = [sys.executable, "-m", "deploy", "run", str(EXAMPLE / "run.toml")]
        command += [part for setting in settings for part in ("--set", setting)]
        environment = os.environ | {"PACE_S": str(case.pace_s)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return config


def planned(case: Case, config: RunConfig) -> tuple[Outcome, int]:
    """What the plan says, and the first step that counts."""
    lines = read_metrics(RunDirectory(config.directory).metrics)
    values = measured(config)
    values |= {
        "student": {"tokens_per_s": SLOTS / (FIXED_S + SLOTS * EACH_S), "at": SLOTS, "alone_tokens_per_s": 1 / (FIXED_S + EACH_S)},
        "teacher": {"tokens_per_s": case.rate},
        "learner": {"tokens_per_s": 1e9, "step_s": sum(line["seconds"] for line in lines) / len(lines)},
        "weights": values.get("weights", {}) | {"load_s": 0.0},  # the stand-ins make up for the pause
    }
    setting = setting_of(config, rates_from(values, None, ()), version_bytes(config), seed=1)
    return simulate(setting, Layout(case.students, case.teachers)), setting.warm_up


def compared(case: Case, config: RunConfig) -> dict[str, Any]:
    """One row."""
    outcome, warm_up = planned(case, config)
    lines = read_metrics(RunDirectory(config.directory).metrics)
    counted = lines[warm_up:]
    real = sum(line["samples"] for line in counted) / (lines[-1]["at"] - lines[warm_up - 1]["at"])
    trained: dict[int, int] = {}
    for line in counted:
        for lag, tokens in line["staleness"].items():
            trained[int(lag)] = trained.get(int(lag), 0) + tokens
    return {
        "case": case.name,
        "students": case.students,
        "teachers": case.teachers,
        "planned": round(outcome.samples_per_s, 2),
        "real": round(real, 2),
        "error": round(outcome.samples_per_s / real - 1, 4),
        "staleness_planned": round(mean_staleness(outcome), 2),
        "staleness_real": round(sum(lag * tokens for lag, tokens in trained.items()) / max(1, sum(trained.values())), 2),
        "learner_busy_planned": round(outcome.learner_busy, 3),
        "learner_busy_real": round(sum(line["seconds"] for line in counted) / (lines[-1]["at"] - lines[warm_up - 1]["at"]), 3),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = (
        "| run | students | teachers | samples/s: planned | real | error | learner busy: planned | real | mean staleness: planned | real |"
    )
    lines = [head, "| --- | " + " | ".join(["---:"] * 9) + " |"]
    for row in rows:
        cells = (row["case"], row["students"], row["teachers"], f"{row['planned']:.1f}", f"{row['real']:.1f}", f"{row['error']:+.1%}")
        shares = (f"{row['learner_busy_planned']:.0%}", f"{row['learner_busy_real']:.0%}")
        lines.append(f"| {' | '.join(map(str, (*cells, *shares, row['staleness_planned'], row['staleness_real'])))} |")
    return "\n".join(lines)


def main() -> None:
    """Runs, compares, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", type=int, nargs="+", default=range(len(CASES)), metavar="N", help="some of the runs, counted from 0")
    parser.add_argument("--again", action="store_true", help="run nothing: the plan beside the runs that lie below runs/")
    parser.add_argument("--write-docs", action="store_true")
    given = parser.parse_args()
    rows = []
    for number in given.only:
        case = CASES[number]
        config = open_target(ROOT / f"runs/plan-{number}") if given.again else run(case, given.steps)
        rows.append(compared(case, config))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    if given.write_docs:
        (ROOT / "docs/plan.json").write_text(json.dumps(rows, indent=1) + "\n")
        page = ROOT / "docs/plan.md"
        page.write_text(PLACE.sub(lambda found: f"{found[1]}{table(rows)}\n{found[2]}", page.read_text()))


if __name__ == "__main__":
    main()
