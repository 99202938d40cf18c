"""One sample among 64 kills, or hangs, every worker that touches it: it alone goes to the dead letters (real processes)."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from common.bus import connect
from common.bus.base import SCORED, TICKETS, Move, rollouts
from common.bus.embedded import EmbeddedServer
from common.codec import encode
from common.config import load_config
from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, TeacherShare, Ticket, Version

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.timeout(120)]

COUNT, GUILTY, TRIES = 64, 37, 3
ROLE_SCRIPT = Path(__file__).with_name("poisoned_role.py")


def ticket(seq: int) -> Ticket:
    return Ticket(seq, 0, "p", np.array([1], np.int32), Sampling(1.0, 4, ()), (TeacherShare("t", 1.0),), Version(1, 0))


def rollout(seq: int) -> ScoredRollout:
    completion = Completion(np.array([1], np.int32), np.array([-0.5], np.float32), (Span(1, 0, 1, True),), "stop")
    return ScoredRollout(Rollout(ticket(seq), completion))


async def fill(bus, role: str) -> None:
    await bus.claim(1, "learner", 100.0, False)
    await bus.admit(1, 0, [(seq, encode(ticket(seq))) for seq in range(COUNT)])
    if role == "scorer":
        held = await bus.lease([TICKETS], COUNT, 0)
        await bus.hand_off([Move(lease, rollouts("t"), encode(rollout(lease.seq))) for lease in held])


async def serve_until_done(bus, command: list[str], target: str, log: Path) -> int:
    """Starts the worker again whenever it dies; returns how often it did."""
    deaths, deadline = 0, time.monotonic() + 100
    with log.open("w") as out:
        while True:
            process = subprocess.Popen(command, stdout=out, stderr=out)  # noqa: ASYNC220
            try:
                while process.poll() is None:
                    state = await bus.state()
                    if state.backlog.get(target, 0) + state.dead == COUNT:
                        return deaths
                    assert time.monotonic() < deadline, log
                    time.sleep(0.05)  # noqa: ASYNC251 - nothing else runs here
            finally:
                process.kill()
                process.wait()
            deaths += 1
            assert deaths < 12, log


@pytest.mark.parametrize("how", ["die", pytest.param("hang", marks=pytest.mark.slow)])
@pytest.mark.parametrize("role", ["producer", "scorer"])
async def test_the_guilty_sample_dies_alone(role: str, how: str, tmp_path: Path) -> None:
    values = {
        "run": {"name": "r", "dir": str(tmp_path)},
        "model": {"student": "s"},
        "teachers": {"t": {"path": "t"}},
        "data": {"prompts": "p"},
        "evaluation": {"prompts": 0},
        "learner": {"max_attempts": TRIES},
        "producer": {"slots": COUNT},
        "bus": {"lease_s": 0.5, "work_deadline_s": 1.5},
        "service": {"heartbeat_s": 0.2},
    }
    file = tmp_path / "run.toml"
    file.write_text(tomli_w.dumps(values))
    config = load_config(file, [])
    config.directory.mkdir()
    target = rollouts("t") if role == "producer" else SCORED
    command = [sys.executable, str(ROLE_SCRIPT), role, how, str(GUILTY), str(file)]
    async with EmbeddedServer.start(config.directory), connect(config, name="test") as bus:
        await fill(bus, role)
        deaths = await serve_until_done(bus, command, target, tmp_path / "role.log")
        letters, state = await bus.dead_letters(), await bus.state()
    said = (tmp_path / "role.log").read_text()
    assert {seq: letter.reason for seq, letter in letters.items()} == {GUILTY: f"poison: {TRIES} {role}s failed on it alone"}, said
    assert letters[GUILTY].payload
    assert state.backlog[target] == COUNT - 1
    assert deaths <= TRIES + 2, "more than the supervisor's budget allows"
    assert ("hangs on samples" in said) == (how == "hang")
