"""The arithmetic example in full through servers of SGLang's protocol, beside the torch run: `make bench-standin`.

Both runs have the same seed, prompts, steps and precision (the teacher is float32 in both, so that only the way is compared); in the second
student and teacher stand on stand-in servers (deploy/sglang_standin), each a process of its own. Prints pass@1 before and after, samples,
dead letters and the wall seconds of the training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any  # a run's result is JSON

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/arithmetic"


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a stand-in server of one of the example's models."""
    command = [sys.executable, "-m", "deploy.sglang_standin", "--model", str(EXAMPLE / "models" / model), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            if not said:
                raise SystemExit(f"the stand-in of {model} does not start: see above")
            yield said.split()[-1]
        finally:
            server.kill()


def one_run(runs: Path, name: str, steps: int, **settings: object) -> dict[str, Any]:
    """The run's result."""
    given = {"run.name": name, "run.dir": runs, "learner.steps": steps, "teachers.arithmetic.dtype": "float32", **settings}
    sets = [f"--set={key}={value}" for key, value in given.items()]
    command = [sys.executable, "-m", "deploy", "run", str(EXAMPLE / "run.toml"), "--fresh", *sets]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    result: dict[str, Any] = json.loads((runs / name / "result.json").read_text())
    return result


def on_torch(runs: Path, steps: int) -> dict[str, Any]:
    """Student and teacher in the roles' own processes."""
    return one_run(runs, "standin-torch", steps)


def on_servers(runs: Path, steps: int, students: int, teachers: int) -> dict[str, Any]:
    """So many servers of either."""
    with ExitStack() as stack:
        places = {
            "producer.urls": json.dumps([stack.enter_context(served("student")) for _ in range(students)]),
            "teachers.arithmetic.urls": json.dumps([stack.enter_context(served("teacher")) for _ in range(teachers)]),
        }
        kinds = {"producer.kind": "sglang", "teachers.arithmetic.kind": "sglang"}
        return one_run(runs, "standin-sglang", steps, **kinds, **places)


def row(way: str, result: dict[str, Any]) -> str:
    """Of the table in docs/engines.md."""
    passed, ledger = result["pass_at_1"], result["ledger"]
    return (
        f"| {way} | {100 * passed['before']:.1f} % | {100 * passed['after']:.1f} % | {ledger['applied']:,} | {ledger['dead']} "
        f"| {result['wall_s']:.0f} |"
    )


def main() -> None:
    """Both runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.standin", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--students", type=int, default=1, help="servers of the student")
    parser.add_argument("--teachers", type=int, default=1, help="servers of the teacher")
    given = parser.parse_args()
    runs = ROOT / "runs"
    print("| student and teacher | pass@1 before | after | samples | dead | wall s |\n|---|---|---|---|---|---|")
    print(row("torch, in the roles' processes", on_torch(runs, given.steps)), flush=True)
    way = f"stand-in servers: {given.students} of the student, {given.teachers} of the teacher"
    print(row(way, on_servers(runs, given.steps, given.students, given.teachers)), flush=True)


if __name__ == "__main__":
    main()
