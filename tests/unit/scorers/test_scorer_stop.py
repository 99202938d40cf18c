"""A scorer that is told to stop keeps nobody waiting."""

import asyncio

import pytest
from scorer_fakes import FakeTeacher, config_of, fill, filled, scored, serving, worker_of

from scorers import probe, service
from scorers.service import Scorer


async def test_told_to_stop_it_finishes_what_it_holds_and_leases_nothing_more() -> None:
    server = filled(2)
    worker, teacher = worker_of(server, config_of()), FakeTeacher("t")
    teacher.hold()
    async with serving(worker, teacher):
        await teacher.began.wait()
        worker.stopping.set()
        await asyncio.sleep(0.1)
        fill(server, 3, first=2)
        teacher.go()
    assert sorted(scored(server)) == [0, 1]
    assert len(server.payloads("rollouts:t")) == 3
    assert len(worker.keeper) == 0


async def test_told_to_stop_it_gives_back_at_once_what_its_teacher_has_not_begun() -> None:
    server = filled(8)
    worker, teacher = worker_of(server, config_of(lease_tokens=10, batch_tokens=10)), FakeTeacher("t")
    teacher.hold()

    def held() -> list[int]:
        return sorted(entry.seq for entry in server.topics["rollouts:t"].values() if entry.owner)

    async with serving(worker, teacher):
        await teacher.began.wait()
        begun = sorted(teacher.batches[0])
        async with asyncio.timeout(60):
            while len(held()) == len(begun):
                await asyncio.sleep(0.01)
            worker.stopping.set()
            while held() != begun:  # although the teacher is not done
                await asyncio.sleep(0.01)
        assert len(worker.keeper) == len(begun)
        teacher.go()
    assert sorted(scored(server)) == begun
    assert held() == []


async def test_a_scorer_with_other_weights_leases_nothing_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "_repair_s", 0.05)
    server, other, right = filled(4), FakeTeacher("t"), FakeTeacher("t")
    other.digest, server.vouched["t"] = "other", right.digest
    left, worker = worker_of(server, config_of(), "left"), worker_of(server, config_of(), "worker")
    teachers = {id(left.pulse): other, id(worker.pulse): right}

    async def opened(_config: object, _name: str, pulse: object) -> tuple[FakeTeacher, FakeTeacher]:
        return teachers[id(pulse)], teachers[id(pulse)]

    monkeypatch.setattr(probe, "open_checked", opened)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        lives = [tasks.create_task(service.score(left, "t"))]
        while not left.pulse.report().gauges.get("complaint"):
            await asyncio.sleep(0.01)
        lives.append(tasks.create_task(service.score(worker, "t")))
        await server.until("scored", 4)
        assert not any(life.done() for life in lives)
        left.stopping.set()
        worker.stopping.set()
    assert "than those that this run was begun with (fake)" in str(left.pulse.report().gauges["complaint"])
    assert not worker.pulse.report().gauges["complaint"]
    assert (sorted(scored(server)), other.batches, server.dead) == ([0, 1, 2, 3], [], {})
