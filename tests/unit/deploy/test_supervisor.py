import asyncio
import signal

import pytest

import deploy.supervisor
from deploy.process import Exit
from deploy.roles import RoleSpec
from deploy.supervisor import Ended, Supervisor

LEARNER, SCORER = RoleSpec("learner", 0, 0), RoleSpec("scorer", 0, 3)
FOREVER = 1_000_000


class FakeProcess:
    """Ends by itself after some polls, or when told to."""

    def __init__(self, code: int = 0, reason: str = "", polls: int = FOREVER, *, deaf: bool = False) -> None:
        self.end = Exit(code, 2.5, reason)
        self.polls = polls
        self.deaf = deaf
        self.signals: list[signal.Signals] = []

    def poll(self) -> Exit | None:
        self.polls -= 1
        return self.end if self.polls < 0 else None

    def send(self, number: signal.Signals) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL or not self.deaf:
            self.polls = 0


class Stage:
    """Spawns what the test wrote down, by role, in order; the last one stays."""

    def __init__(self, **scripts: list[FakeProcess]) -> None:
        self.scripts = scripts
        self.spawned: list[tuple[str, bool]] = []
        self.said: list[str] = []
        self.progress = 0

    def spawn(self, spec: RoleSpec, again: bool) -> FakeProcess:
        self.spawned.append((spec.role, again))
        script = self.scripts[spec.role]
        return script.pop(0) if len(script) > 1 else script[0]

    def supervisor(self, *specs: RoleSpec, budget: int = 3, moving: bool = False) -> Supervisor:
        def progress() -> int:
            self.progress += moving
            return self.progress

        return Supervisor(specs=lambda: specs, spawn=self.spawn, progress=progress, say=self.said.append, budget=budget, drain_s=0.0)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_POLL_S": 0.001, "_FIRST_PAUSE_S": 0.001, "_DRAIN_MARGIN_S": 0.05}.items():
        monkeypatch.setattr(deploy.supervisor, name, seconds)


async def test_the_run_is_finished_when_the_learner_is_done_and_the_others_are_told_to_drain() -> None:
    scorer = FakeProcess()
    stage = Stage(learner=[FakeProcess(0, polls=5)], scorer=[scorer])
    supervisor = stage.supervisor(LEARNER, SCORER)
    assert await supervisor.run(asyncio.Event()) == Ended("finished")
    assert scorer.signals[0] == signal.SIGTERM
    assert supervisor.cpu_s == {"learner": 2.5, "scorer": 2.5}


async def test_a_role_that_dies_is_started_again_with_its_reason_told() -> None:
    stage = Stage(learner=[FakeProcess(0, polls=50)], scorer=[FakeProcess(-9, "killed by SIGKILL", polls=3), FakeProcess()])
    assert (await stage.supervisor(LEARNER, SCORER).run(asyncio.Event())).how == "finished"
    assert stage.spawned == [("learner", False), ("scorer", False), ("scorer", True)]
    assert "scorer-0 ended (killed by SIGKILL)" in stage.said[0]


async def test_deaths_without_progress_stop_the_run_when_the_budget_is_spent() -> None:
    stage = Stage(learner=[FakeProcess()], scorer=[FakeProcess(1, "ValueError: no", polls=1) for _ in range(9)])
    ended = await stage.supervisor(LEARNER, SCORER, budget=3).run(asyncio.Event())
    assert (ended.how, ended.user) == ("failed", False)
    assert "ValueError: no" in ended.reason
    assert stage.spawned.count(("scorer", True)) == 3


async def test_progress_between_deaths_gives_the_whole_budget_back() -> None:
    crashes = [FakeProcess(1, "boom", polls=1) for _ in range(9)]
    stage = Stage(learner=[FakeProcess(0, polls=200)], scorer=[*crashes, FakeProcess()])
    assert (await stage.supervisor(LEARNER, SCORER, budget=3, moving=True).run(asyncio.Event())).how == "finished"
    assert stage.spawned.count(("scorer", True)) == 9


async def test_a_users_mistake_is_not_tried_again() -> None:
    stage = Stage(learner=[FakeProcess(2, "reflux learner: wrong key", polls=1)], scorer=[FakeProcess()])
    assert await stage.supervisor(LEARNER, SCORER).run(asyncio.Event()) == Ended("failed", "reflux learner: wrong key", user=True)
    assert ("learner", True) not in stage.spawned


async def test_told_to_stop_it_drains_all_roles() -> None:
    learner, scorer, stopping = FakeProcess(), FakeProcess(), asyncio.Event()
    stopping.set()
    assert await Stage(learner=[learner], scorer=[scorer]).supervisor(LEARNER, SCORER).run(stopping) == Ended("stopped")
    assert learner.signals[0] == scorer.signals[0] == signal.SIGTERM


async def test_who_does_not_drain_is_killed_and_named() -> None:
    learner, stopping = FakeProcess(deaf=True), asyncio.Event()
    stopping.set()
    stage = Stage(learner=[learner])
    await stage.supervisor(LEARNER).run(stopping)
    assert learner.signals == [signal.SIGTERM, signal.SIGKILL]
    assert "learner-0 did not drain" in stage.said[-1]


async def test_a_cancelled_supervisor_leaves_no_process_behind() -> None:
    learner = FakeProcess()
    task = asyncio.create_task(Stage(learner=[learner]).supervisor(LEARNER).run(asyncio.Event()), name="supervisor")
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert learner.signals[0] == signal.SIGTERM


async def test_who_is_wanted_later_is_started_and_who_is_wanted_no_more_drains() -> None:
    first, second, wanted = FakeProcess(-15, "terminated"), FakeProcess(), [LEARNER, SCORER]
    stage = Stage(learner=[FakeProcess(0, polls=300)], scorer=[first, second])
    supervisor = stage.supervisor()
    supervisor.specs = lambda: wanted
    task = asyncio.create_task(supervisor.run(asyncio.Event()), name="supervisor")
    async with asyncio.timeout(60):
        while len(stage.spawned) < 2:
            await asyncio.sleep(0.001)
        wanted.append(RoleSpec("scorer", 1, 3))
        while len(stage.spawned) < 3:
            await asyncio.sleep(0.001)
        wanted.remove(SCORER)
        while not first.signals:
            await asyncio.sleep(0.001)
        assert (await task).how == "finished"
    assert first.signals == [signal.SIGTERM]
    assert stage.spawned == [("learner", False), ("scorer", False), ("scorer", False)]
    assert stage.said == []  # no death


async def test_who_is_wanted_no_more_and_does_not_drain_is_killed() -> None:
    deaf, wanted = FakeProcess(deaf=True), [LEARNER, SCORER]
    stage = Stage(learner=[FakeProcess()], scorer=[deaf])
    supervisor, stopping = stage.supervisor(), asyncio.Event()
    supervisor.specs = lambda: wanted
    task = asyncio.create_task(supervisor.run(stopping), name="supervisor")
    async with asyncio.timeout(60):
        while len(stage.spawned) < 2:
            await asyncio.sleep(0.001)
        wanted.remove(SCORER)
        while signal.SIGKILL not in deaf.signals:
            await asyncio.sleep(0.001)
        stopping.set()
        await task
    assert deaf.signals[:2] == [signal.SIGTERM, signal.SIGKILL]
