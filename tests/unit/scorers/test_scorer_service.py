"""The scorer's loop: one in, one out, whatever happens in between."""

import asyncio
import time

import pytest
from scorer_fakes import FakeTeacher, Server, config_of, fill, filled, scored, serving, worker_of
from tiny_models import make_rollout

from common.bus.memory import MemoryBus
from common.bus.memory_server import MemoryServer
from common.codec import encode
from common.errors import ConfigError, OtherSchema
from common.messages import ScoredRollout
from scorers.__main__ import teacher_of
from scorers.service import Scorer, _other_weights


async def settle_down() -> None:
    """Lets everything run that does not wait for time."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_every_rollout_is_scored_once_and_counted() -> None:
    server = filled(9)
    worker = worker_of(server, config_of())
    async with serving(worker, FakeTeacher("t")):
        await server.until("scored", 9)
    samples = scored(server)
    assert sorted(samples) == list(range(9))
    assert samples[4].scores[0].logprobs.tolist() == [-4.0] * 3
    assert server.payloads("rollouts:t") == []
    assert len(worker.keeper) == 0
    report = worker.pulse.report()
    assert (report.counters["samples"], report.counters["tokens"], report.counters["refused"]) == (9, 45, 0)
    assert report.waiting["rollouts"] > 0
    assert "teacher" in report.waiting


async def test_two_teachers_of_one_slip_score_in_its_order() -> None:
    server = filled(4, ("b", "a"))
    config = config_of(("a", "b"))
    async with serving(worker_of(server, config, "one"), FakeTeacher("b"), "b"):
        await server.until("rollouts:a", 4)
        assert "scored" not in server.topics
        async with serving(worker_of(server, config, "two"), FakeTeacher("a"), "a"):
            await server.until("scored", 4)
    for sample in scored(server).values():
        assert [score.teacher for score in sample.scores] == ["b", "a"]
        assert [hop.worker for hop in sample.hops] == ["one", "two"]
        assert all(hop.began <= hop.done for hop in sample.hops)
        assert sample.remaining == ()


async def test_what_cannot_be_scored_goes_to_the_dead_letters_with_its_reason() -> None:
    server = filled(3)
    server.add("rollouts:t", 3, b"rubbish")
    server.add("rollouts:t", 4, encode(ScoredRollout(make_rollout([1], [2], 4, ("other",)))))
    async with serving(worker_of(server, config_of()), FakeTeacher("t", rejects=[1])):
        await server.until("scored", 5)
    assert sorted(scored(server)) == [0, 2]
    assert server.dead[1] == "NaN in 1"
    assert "a frame of 7 bytes" in server.dead[3]
    assert "the next teacher of its slip is other" in server.dead[4]


async def test_a_lost_lease_is_refused_and_nothing_is_duplicated() -> None:
    server = filled(3)
    slow, mine = FakeTeacher("t"), worker_of(server, config_of(), "slow")
    slow.hold()
    async with serving(mine, slow):
        await slow.began.wait()
        mine.stopping.set()
        server.take_from("slow")
        async with serving(worker_of(server, config_of(), "other"), FakeTeacher("t")):
            await server.until("scored", 3)
        slow.go()
    assert sorted(scored(server)) == [0, 1, 2]
    assert mine.pulse.report().counters["refused"] == 3


async def test_what_the_keeper_has_forgotten_is_not_scored() -> None:
    server = filled(1)
    worker, teacher = worker_of(server, config_of()), FakeTeacher("t")
    teacher.hold()
    async with serving(worker, teacher):
        await teacher.began.wait()
        fill(server, 2, first=1)
        while len(worker.keeper) < 3:
            await asyncio.sleep(0)
        forgotten = next(lease for lease, _ in worker.keeper._held.values() if lease.seq == 2)
        worker.keeper.drop([forgotten])
        teacher.go()
        await server.until("scored", 2)
    assert teacher.batches == [[0], [1]]


async def test_the_next_batch_is_leased_and_the_last_handed_off_while_one_is_scored() -> None:
    server = filled(1)
    worker, teacher = worker_of(server, config_of(lease_tokens=5, batch_tokens=5)), FakeTeacher("t")
    teacher.hold()
    async with serving(worker, teacher):
        await teacher.began.wait()
        fill(server, 2, first=1)
        await settle_down()
        assert [entry.owner for entry in server.topics["rollouts:t"].values()] == ["me", "me", ""]
        teacher.go(1)
        await settle_down()
        assert sorted(scored(server)) == [0]
        assert teacher.batches == [[0], [1]]
        teacher.go()
        await server.until("scored", 3)


async def test_rollouts_that_arrive_while_the_teacher_is_busy_are_scored_together() -> None:
    server = filled(1)
    worker, teacher = worker_of(server, config_of(batch_tokens=10)), FakeTeacher("t")
    teacher.hold()
    async with serving(worker, teacher):
        await teacher.began.wait()
        for first in range(1, 5):
            fill(server, 1, first=first)
            while len(worker.keeper) <= first:
                await asyncio.sleep(0.01)
            await settle_down()
        teacher.go()
        await server.until("scored", 5)
    assert teacher.batches == [[0], [1, 2, 3, 4]]


async def test_a_batch_stays_near_the_token_budget() -> None:
    server, teacher = filled(40), FakeTeacher("t")
    async with serving(worker_of(server, config_of(lease_tokens=30, batch_tokens=10)), teacher):
        await server.until("scored", 40)
    assert max(len(batch) for batch in teacher.batches) <= 6
    assert sum(len(batch) for batch in teacher.batches) == 40


async def test_suspects_are_scored_apart_and_the_worst_alone() -> None:
    server, teacher = filled(3), FakeTeacher("t")
    fill(server, 2, deliveries=3, first=10)
    async with serving(worker_of(server, config_of(lease_tokens=100)), teacher):
        await server.until("scored", 5)
    assert sorted(scored(server)) == [0, 1, 2, 10, 11]
    assert sorted(teacher.batches, key=len) == [[11], [10], [0, 1, 2]]
    assert server.alone == {10: 1, 11: 1}


async def test_a_rollout_that_kills_every_scorer_is_buried_and_the_others_survive() -> None:
    server = filled(6)
    for number in range(20):
        worker, teacher = worker_of(server, config_of(lease_tokens=100), f"life {number}"), FakeTeacher("t", dies_of=[2])
        try:
            async with serving(worker, teacher) as life:
                await asyncio.wait({life, asyncio.create_task(server.until("scored", 6))}, return_when="FIRST_COMPLETED")
        except ExceptionGroup:
            server.take_from(worker.name)
        else:
            break
    assert sorted(scored(server)) == [0, 1, 3, 4, 5]
    assert server.dead == {2: "poison: 3 scorers failed on it alone"}


async def test_an_idle_scorer_waits_instead_of_spinning() -> None:
    server = Server()
    worker, calls = worker_of(server, config_of()), []
    lease = worker.bus.lease

    async def counted(*arguments: object) -> object:
        calls.append(arguments)
        return await lease(*arguments)

    worker.bus.lease = counted
    began = time.monotonic()
    async with serving(worker, FakeTeacher("t")):
        while len(calls) < 4:
            await asyncio.sleep(0.01)
    waited = time.monotonic() - began
    assert len(calls) <= 2 + waited / worker.config.service.heartbeat_s
    assert 0 < worker.pulse.report().waiting["rollouts"] <= waited


def test_the_only_teacher_need_not_be_named() -> None:
    assert teacher_of(config_of(("a",)), None) == "a"
    assert teacher_of(config_of(("a", "b")), "b") == "b"


@pytest.mark.parametrize(
    ("asked", "sentence"), [(None, "say which one with --teacher"), ("c", "there is no teacher 'c': this run has a, b")]
)
def test_a_teacher_that_is_not_clear_is_asked_for(asked: str | None, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        teacher_of(config_of(("a", "b")), asked)


async def test_a_teacher_that_turned_bad_gets_nothing_more_and_its_rollouts_go_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "_repair_s", 0.05)
    server, bad, good = filled(6), FakeTeacher("t"), FakeTeacher("t")
    bad.broken = "teacher t gave NaN at response token 0 (it did not at the start)"
    worker = worker_of(server, config_of(lease_tokens=30))
    async with serving(worker, bad):
        while not worker.pulse.report().gauges.get("complaint"):
            await asyncio.sleep(0.01)
        batches = len(bad.batches)
        async with serving(worker_of(server, config_of(), "other"), good):
            await server.until("scored", 6)
        assert len(bad.batches) == batches
        assert len(worker.keeper) == 0
    assert (sorted(scored(server)), server.dead) == ([0, 1, 2, 3, 4, 5], {})


async def test_what_was_leased_ahead_of_a_teacher_that_turned_bad_goes_to_another_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "_repair_s", 0.05)
    server, bad = filled(1), FakeTeacher("t")
    bad.hold()
    worker = worker_of(server, config_of())
    async with serving(worker, bad):
        await bad.began.wait()
        fill(server, 3, first=1)
        while len(worker.keeper) < 4:
            await asyncio.sleep(0)
        bad.broken = "teacher t gave NaN at response token 0 (it did not at the start)"
        bad.go()
        async with serving(worker_of(server, config_of(), "other"), FakeTeacher("t")):
            await server.until("scored", 4)
        assert len(worker.keeper) == 0
    assert (sorted(scored(server)), server.dead) == ([0, 1, 2, 3], {})


async def test_a_teacher_that_was_repaired_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "_repair_s", 0.05)
    server, teacher = filled(3), FakeTeacher("t")
    teacher.broken = "teacher t gave NaN"
    worker = worker_of(server, config_of())
    async with serving(worker, teacher):
        while not worker.pulse.report().gauges.get("complaint"):
            await asyncio.sleep(0.01)
        teacher.broken = ""
        await server.until("scored", 3)
    assert worker.pulse.report().gauges["complaint"] == ""
    assert sorted(scored(server)) == [0, 1, 2]


async def test_a_well_teacher_is_examined_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "_examine_s", 0.0)
    server, teacher = filled(3), FakeTeacher("t")
    asked = []

    async def complaint() -> str:
        asked.append(1)
        return ""

    monkeypatch.setattr(teacher, "complaint", complaint)
    async with serving(worker_of(server, config_of()), teacher):
        await server.until("scored", 3)
    assert asked


async def test_weights_other_than_those_that_the_run_began_with_are_complained_of() -> None:
    bus = MemoryBus(MemoryServer(), name="s")
    said = [await _other_weights(bus, *vouched) for vouched in (("t", "a"), ("t", "a"), ("other", "b"), ("t", "b"))]
    assert said[:3] == ["", "", ""]
    assert "teacher t has other weights (b) than those that this run was begun with (a)" in said[3]


async def test_a_rollout_of_another_version_ends_the_scorer_and_stays() -> None:
    server = filled(2)
    for entry in server.topics["rollouts:t"].values():
        entry.payload = entry.payload[:4] + b"\x03\x00" + entry.payload[6:]
    worker = worker_of(server, config_of())
    with pytest.raises(ExceptionGroup) as caught:
        async with serving(worker, FakeTeacher("t")) as life:
            await asyncio.wait({life}, timeout=60)
    assert caught.group_contains(OtherSchema, match="run the same version everywhere")
    assert (len(server.payloads("rollouts:t")), server.dead) == (2, {})
