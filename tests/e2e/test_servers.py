"""The arithmetic run with its student and its teacher on SGLang's protocol: two stand-in servers each, one of each killed in mid-run."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import parquet

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.timeout(500)]

MODELS = Path(__file__).resolve().parents[2] / "examples" / "arithmetic" / "models"
STEPS, BATCH = 16, 16


class StandInProcess:
    """`python -m deploy.sglang_standin`, on the same port again after a kill."""

    def __init__(self, model: str, log: Path, environment: dict[str, str]) -> None:
        self._model = MODELS / model
        self._log = log
        self._environment = environment
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "deploy.sglang_standin", "--model", str(self._model), "--port", str(self.port)]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True)

    def ready(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self._log.read_text()
        self.port = int(line.rpartition(":")[2])
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[[str], list[StandInProcess]]


@pytest.fixture
def start_two(example, tmp_path: Path) -> Iterator[Start]:
    running: list[StandInProcess] = []

    def start(model: str) -> list[StandInProcess]:
        two = [StandInProcess(model, tmp_path / f"{model}-{n}.log", example.environment) for n in range(2)]
        running.extend(two)
        return two

    yield start
    for server in running:
        server.kill()


def test_a_run_on_servers_survives_the_death_of_one_of_each_and_is_audited(example, start_two: Start) -> None:
    students, teachers = start_two("student"), start_two("teacher")
    example.settings |= {
        "learner.steps": STEPS,
        "producer.kind": "sglang",
        "producer.urls": json.dumps([server.ready() for server in students]),
        "producer.deadline_s": 30,
        "teachers.arithmetic.kind": "sglang",
        "teachers.arithmetic.urls": json.dumps([server.ready() for server in teachers]),
        "teachers.arithmetic.deadline_s": 30,
    }
    example.start("run")
    example.wait_for(lambda: example.step >= 3, "step 3", 200)
    students[0].kill()
    teachers[0].kill()
    reached = example.step
    example.wait_for(lambda: example.step >= min(STEPS, reached + 2), "progress on the servers that are left")
    students[0].start()
    teachers[0].start()
    assert example.started[-1].wait(200) == 0, example.output()
    result = example.result
    ledger = result["ledger"]
    assert (result["steps"], ledger["dead"], ledger["applied"]) == (STEPS, 0, STEPS * BATCH)
    assert result["staleness"]["max"] <= 4
    audit = example.go("audit")
    assert (audit.returncode, "every sample was applied once" in audit.stdout) == (0, True), audit.stdout + audit.stderr
    example.go("export")
    rollouts = parquet.read_table(example.directory / "rollouts.parquet")
    assert len(set(rollouts["seq"].to_pylist())) == STEPS * BATCH
