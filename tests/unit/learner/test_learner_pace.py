"""Staleness, stragglers, evaluations: who waits for whom, and that everybody goes on."""

import asyncio
import json
import threading
from functools import partial

import pytest
from learner_fakes import background
from learner_world import World

from common.bus.base import EVAL, Burial
from common.codec import decode
from common.messages import Ticket, Version, WeightManifest
from learner.tally import Tally


@pytest.fixture
def world(tmp_path):
    return partial(World, tmp_path)


async def test_staleness_zero_is_strictly_synchronous(world):
    run = world(max_staleness=0)
    async with run.workers():
        result = await run.finish()
    assert set(result["staleness"]["histogram"]) == {"0"}
    assert result["versions"] == 9, "one before the first step and one after each"


async def test_every_step_is_published_once_and_versions_grow(world):
    run = world()
    async with run.workers():
        await run.finish()
        async with run.connect("reader") as bus:
            log = [decode(payload, WeightManifest).version for _, payload in await bus.weights_after("0", 0)]
    assert log == sorted(set(log))
    assert log[-1] == Version(1, 8)
    assert run.published() == [f"term000001-step{version.step:08}" for version in log[-3:]], "weights.keep"


async def until(condition, life):
    """Of a life that goes on meanwhile."""
    async with asyncio.timeout(60):
        while not condition():
            assert not life.done(), life
            await asyncio.sleep(0.005)


async def test_a_publication_interval_wider_than_the_window_does_not_starve_the_run(world):
    run = world(max_staleness=1, weights={"publish_every": 5})
    async with run.workers():
        result = await run.finish()
    assert result["versions"] == 5, "steps 0, 2, 4, 6, 8"


@pytest.mark.parametrize("straggler", ["mask", "retry", "wait"])
async def test_a_straggler_is_masked_sampled_again_or_waited_for(world, straggler):
    run = world(straggler=straggler, max_attempts=9)
    slow = asyncio.Event()
    hand_off_slowly(run, slow, seq=1)
    async with run.workers():
        life = asyncio.create_task(run.life())
        if straggler == "wait":
            await asyncio.sleep(1.2)
        else:
            await until(lambda: run.trainer and run.trainer.steps > 1, life)
        steps = run.trainer.steps
        slow.set()
        await asyncio.wait_for(life, 60)
        result = await run.check()
    if straggler == "wait":
        assert steps == 0
        assert result["retried"] == {}
    else:
        assert steps > 1, "the others went on"
        assert result["retried"] == {"stale": 1}


def hand_off_slowly(run, slow, seq):
    """The producer's first attempt at `seq` comes out late, with the weights it began with; others overtake it."""
    late = []

    async def work(bus, lease):
        ticket = decode(lease.payload, Ticket)
        while run.version is None or run.version < ticket.min_version:
            await asyncio.sleep(0.002)
        move = run._sample(lease, ticket)
        if ticket.seq == seq and ticket.attempt == 0:
            late.append(move)
        else:
            await bus.hand_off([move])

    async def produce(bus):
        while True:
            for lease in await bus.lease(["tickets"], 2, 0.02):
                await work(bus, lease)
            await bus.renew([move.lease for move in late])
            if late and slow.is_set():
                await bus.hand_off([late.pop()])

    run._produce = produce


async def test_evaluations_come_before_every_n_and_after_with_their_own_version(world):
    run = world(questions=4, evaluation={"every": 3})
    async with run.workers():
        result = await run.finish()
    assert [one["step"] for one in result["evaluations"]] == [0, 3, 6, 8]
    assert result["pass_at_1"] == {"before": 0.5, "after": 0.5, "n": 4, "best": 0.5}
    assert all(sampled == asked for sampled, asked, _ in run.evaluated_while)


async def test_while_an_evaluation_is_open_nothing_newer_is_published_and_training_uses_up_its_window(world):
    run = world(questions=2, max_staleness=2)
    run.answering.clear()
    async with run.workers():
        life = asyncio.create_task(run.life())
        await until(lambda: run.trainer and run.trainer.steps == 3, life)
        await asyncio.sleep(0.3)
        assert run.version == Version(1, 0)
        assert run.trainer.steps == 3, "the window of three batches, then it waits"
        run.answering.set()
        await asyncio.wait_for(life, 60)
        await run.check()


async def test_an_evaluation_that_the_bus_lost_is_asked_again(world):
    run = world(questions=3)
    run.answering.clear()
    async with run.workers():
        life = asyncio.create_task(run.life())
        await asyncio.sleep(0.6)
        await run.wipe()
        run.answering.set()
        await asyncio.wait_for(life, 60)
        result = await run.check()
    assert result["pass_at_1"]["n"] == 3
    assert result["evaluations"][0]["n"] == 3


async def test_an_evaluation_that_a_crash_cut_short_is_finished_with_the_same_version(world):
    run = world(questions=2)
    run.answering.clear()
    async with run.workers():
        await run.crash(plan=("settle", "after", 2))
        run.answering.set()
        result = await run.finish()
    assert [one["step"] for one in result["evaluations"]] == [0, 8]
    assert run.evaluated_while[0][0] == Version(1, 0), "the version that the first life published"


async def test_an_evaluation_that_nobody_answers_ends_with_its_deadlines(world):
    run = world(questions=2, steps=2, evaluation={"deadline_s": 0.2})
    run.answering.clear()
    async with run.workers():
        result = await run.finish()
    assert result["pass_at_1"] == {"before": None, "after": None, "n": 0, "best": None}
    assert run.server.state().backlog[EVAL] == 0, "nobody need answer any more"


async def test_an_evaluation_does_not_wait_for_a_question_that_was_given_up(world):
    run = world(questions=4, steps=2, evaluation={"deadline_s": 600.0})

    async def give_up(bus):
        while True:
            for lease in await bus.lease([EVAL], 1, 0.02):
                ticket = decode(lease.payload, Ticket)
                while run.version is None or run.version < ticket.min_version:
                    await asyncio.sleep(0.002)
                if ticket.seq == 1:
                    await bus.bury([Burial(lease, "poison")])
                else:
                    await bus.hand_off([run._answer(lease, ticket)])

    run.answering.clear()
    async with run.workers(), run.connect("other") as bus, background(give_up(bus)):
        result = await run.finish()
    assert [one["n"] for one in result["evaluations"]] == [3, 3]
    assert max(one["seconds"] for one in result["evaluations"]) < 60


@pytest.mark.parametrize("crashes", [False, True])
async def test_the_best_version_is_what_is_exported_when_asked(world, crashes):
    run = world(questions=2, evaluation={"every": 4, "keep_best": True}, weights={"keep": 2}, steps=14)
    answer = run._answer

    def better_at_four(lease, ticket):
        from dataclasses import replace

        from common.codec import encode
        from common.messages import Evaluated

        move = answer(lease, ticket)
        one = decode(move.payload, Evaluated)
        return replace(move, payload=encode(replace(one, correct=one.version.step == 4)))

    run._answer = better_at_four
    async with run.workers():
        if crashes:
            await run.crash(plan=("settle", "after", 7))
        await run.finish()
    from safetensors.torch import load_file

    assert load_file(run.directory.model / "model.safetensors")["weight"][0] == 4.0


async def test_a_pause_stops_admission_and_names_it(world):
    run = world()
    async with run.workers(), run.connect("user") as bus:
        await bus.pause(True)
        life = asyncio.create_task(run.life())
        await until(lambda: run.worker and run.worker.pulse.report().state == "waits for admission", life)
        assert run.trainer.steps == 0
        await bus.pause(False)
        await asyncio.wait_for(life, 60)
        await run.check()


@pytest.mark.parametrize(("slow", "cause"), [("sampling", "scored"), ("publishing", "publication")])
async def test_a_starving_learner_names_what_it_waits_for(world, slow, cause):
    run = world(max_staleness=0)
    run.sampling.clear()
    gate = asyncio.Event()
    if slow == "publishing":
        run.sampling.set()
        put = run.store.put

        async def late(version, tensors):
            if version.step == 1:
                await gate.wait()
            return await put(version, tensors)

        run.store.put = late
    async with run.workers():
        life = asyncio.create_task(run.life())
        await until(lambda: run.worker and run.worker.pulse.report().state == f"waits for {cause}", life)
        gate.set()
        run.sampling.set()
        await asyncio.wait_for(life, 60)
        await run.check()


async def test_metrics_have_one_line_for_each_step(world):
    run = world()
    async with run.workers():
        await run.finish()
    lines = [json.loads(text) for text in run.directory.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert {"loss", "kl", "grad_norm", "lr", "tokens", "staleness", "mixed_share", "kl_by_teacher"} <= lines[0].keys()
    assert list(run.directory.tensorboard.glob("events.*"))


async def test_the_tally_is_read_where_it_is_counted(world, monkeypatch):
    threads, to_json = [], Tally.to_json

    def watched(tally):
        threads.append(threading.current_thread())
        return to_json(tally)

    run = world(steps=3, checkpoint_every=1)
    async with run.workers():
        life = asyncio.create_task(run.life())
        await until(lambda: run.trainer and run.trainer.steps, life)
        monkeypatch.setattr(Tally, "to_json", watched)
        await asyncio.wait_for(life, 60)
    assert set(threads) == {threading.main_thread()}, "a worker that joins changes its size"
