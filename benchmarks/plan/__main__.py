"""What `reflux plan` says beside what real runs do: `make bench-plan`.

Every row is a real run of the example (own processes, Redis, journal, Megatron) whose students and teachers are servers with the service
times of a device and whose learner sleeps through the rest of a device's step, so that the machine's cores decide nothing. The plan is told
the servers' times as they were set; the learner's mean step, the publications' latency and the answers' lengths come from the run, its
throughput never does. Throughput is counted from the step at which the plan begins to count. docs/plan.md has the tables.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON values

from benchmarks.plan.compare import compared, table
from common.config import RunConfig, load_config
from deploy.plan.measured import by_clock, measured
from deploy.target import open_target
from learner.directory import RunDirectory
from learner.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/arithmetic"
FIXED_S, EACH_S = 0.03, 0.002  # of a decode step: 9 answers of the example a second with 32 in flight
SLOTS = 32


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


def rates_of(case: Case, config: RunConfig) -> dict[str, Any]:
    """The servers' as they were set, the rest as the run measured it."""
    values = measured(config)
    return values | {
        "student": {"tokens_per_s": SLOTS / (FIXED_S + SLOTS * EACH_S), "at": SLOTS, "alone_tokens_per_s": 1 / (FIXED_S + EACH_S)},
        "teacher": {"tokens_per_s": case.rate},
        "weights": values.get("weights", {}) | {"load_s": 0.0},  # the stand-ins make up for the pause
    }


def recorded(directory: Path, cores: int) -> dict[str, Any]:
    """A finished run of torch workers beside the plan from its own rates: shared cores, or 0 for a learner that sleeps in its steps."""
    config = open_target(directory)
    values = measured(config) | {"cores": cores}
    if not cores:
        values["learner"] = by_clock(read_metrics(RunDirectory(config.directory).metrics))
    return compared(directory.name, config, values)


def main() -> None:
    """Runs and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", type=int, nargs="+", default=range(len(CASES)), metavar="N", help="some of the runs, counted from 0")
    parser.add_argument("--again", action="store_true", help="run nothing: the plan beside the runs that lie below runs/")
    parser.add_argument("--runs", type=Path, nargs="+", default=(), metavar="RUN", help="instead: finished runs of torch workers")
    parser.add_argument("--cores", type=int, default=0, help="with --runs: cores that the roles shared; 0 = the learner slept in its steps")
    given = parser.parse_args()
    rows = [recorded(directory, given.cores) for directory in given.runs]
    for number in () if given.runs else given.only:
        case = CASES[number]
        config = open_target(ROOT / f"runs/plan-{number}") if given.again else run(case, given.steps)
        rows.append(compared(case.name, config, rates_of(case, config)))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
