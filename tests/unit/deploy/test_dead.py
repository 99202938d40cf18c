"""`reflux dead` on the bus in memory, and on the server of a run that is stopped."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from common.bus import connect
from common.bus.base import TICKETS, Burial, DeadLetter
from common.bus.memory import MemoryBus
from common.bus.memory_server import MemoryServer
from common.codec import decode, encode
from common.config import RunConfig, parse_config
from common.errors import ConfigError
from common.messages import Sampling, TeacherShare, Ticket, Version, WeightManifest
from deploy.__main__ import main
from deploy.dead import Selection, revive
from deploy.server import served
from deploy.visit import say

LETTERS = {seq: DeadLetter(seq, 0, reason, b"") for seq, reason in ((4, "poison: x"), (2, "NaN"), (9, "poison: y"))}


class Prompts:
    fingerprint = "f"

    def __len__(self) -> int:
        return 9

    def ticket(self, seq: int, attempt: int, min_version: Version) -> Ticket:
        prompt = np.array([seq], np.int32)
        return Ticket(seq, attempt, "row", prompt, Sampling(1.0, 4, ()), (TeacherShare("t", 1.0),), min_version)


def chosen(**how: object) -> list[int]:
    return [letter.seq for letter in Selection(**how).of(LETTERS)]  # type: ignore[arg-type]


def test_letters_are_chosen_by_number_by_reason_or_all() -> None:
    assert chosen(seqs=[9, 2]) == [2, 9]
    assert chosen(reason="poison") == [4, 9]
    assert chosen(every=True) == [2, 4, 9]


@pytest.mark.parametrize("how", [{}, {"seqs": [2], "every": True}, {"every": True, "reason": "x"}])
def test_an_unclear_choice_is_refused(how: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="say which samples"):
        chosen(**how)


def test_a_number_that_is_not_dead_stops_the_whole_action() -> None:
    with pytest.raises(ConfigError, match="sample 3 is not among the dead"):
        chosen(seqs=[2, 3])


async def test_a_revived_sample_asks_for_the_newest_weights_in_its_next_attempt() -> None:
    bus = MemoryBus(MemoryServer(), name="w")
    await bus.claim(1, "learner", 30.0, False)
    for step in range(3):
        await bus.publish(1, encode(WeightManifest(Version(1, step), "full", "d", (), {})), 2)
    await bus.admit(1, 0, [(0, b"no ticket")])
    await bus.bury([Burial((await bus.lease([TICKETS], 1, 0))[0], "poison")])
    assert await revive(bus, list((await bus.dead_letters()).values()), Prompts()) == [0]
    (lease,) = await bus.lease([TICKETS], 1, 0)
    ticket = decode(lease.payload, Ticket)
    assert isinstance(ticket, Ticket)
    assert (lease.attempt, ticket.attempt, ticket.min_version) == (1, 1, Version(1, 2))


@pytest.fixture
def stopped(tmp_path: Path) -> RunConfig:
    """A run whose own server was stopped with one dead letter in it."""
    values = {
        "run": {"name": "r", "dir": str(tmp_path / "runs")},
        "model": {"student": "s"},
        "teachers": {"t": {"path": "t"}},
        "data": {"prompts": "p"},
        "evaluation": {"prompts": 0},
    }
    config = parse_config(values)
    config.directory.mkdir(parents=True)
    (config.directory / "config.toml").write_text(tomli_w.dumps(values))

    async def fill() -> None:
        async with served(config, print), connect(config, name="w") as bus:
            await bus.claim(1, "learner", 30.0, False)
            await bus.admit(1, 0, [(seq, encode(Prompts().ticket(seq, 0, Version(1, 0)))) for seq in range(2)])
            await bus.bury([Burial(lease, "NaN in row 3") for lease in await bus.lease([TICKETS], 1, 0)])

    asyncio.run(fill())
    return config


@pytest.mark.redis
def test_the_dead_of_a_stopped_run_are_listed_shown_and_dropped(stopped: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(stopped.directory)
    assert main(["dead", "list", run]) == 0
    assert capsys.readouterr().out == "0 (attempt 0): NaN in row 3\n1 samples were given up\n"
    assert main(["dead", "show", run, "0"]) == 0
    assert "prompt row, 1 tokens: 0" in capsys.readouterr().out
    assert main(["dead", "drop", run, "--reason", "NaN"]) == 0
    assert main(["dead", "show", run, "--all"]) == 0
    assert capsys.readouterr().out.endswith("0 (attempt 0): NaN in row 3\n    its content is gone\n")
    assert not (stopped.directory / "bus.json").exists(), "the server ended with the visit"


@pytest.mark.redis
def test_a_mistake_changes_nothing_and_is_one_sentence(stopped: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(stopped.directory)
    assert main(["dead", "drop", run]) == 2
    assert main(["dead", "drop", run, "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["reflux", "reflux"]
    assert "1 is not among the dead" in lines[1]


def test_a_run_that_never_was_has_no_dead(stopped: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead", "list", str(stopped.directory), "--set", "run.name=other"]) == 2
    assert "there is no run in" in capsys.readouterr().err


def test_what_strangers_wrote_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("0 (attempt 0): NaN \x1b]0;owned\x07 \x9b2J ü")
    assert capsys.readouterr().out == "0 (attempt 0): NaN \\x1b]0;owned\\x07 \\x9b2J ü\n"
