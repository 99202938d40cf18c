"""Scheduler, sampler, uniforms and the slots' bookkeeping, each alone."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages import Completion, Sampling, Ticket, Version
from producers.engines.torch.batch import Batch
from producers.engines.torch.fused import FusedForward
from producers.engines.torch.loader import load_student
from producers.engines.torch.request import Request
from producers.engines.torch.sampler import PLAIN, Shape, draw
from producers.engines.torch.scheduler import PATIENCE, Scheduler
from producers.engines.torch.uniforms import Uniforms

CPU = torch.device("cpu")


@pytest.fixture
def make_request() -> "asyncio.AbstractEventLoop":
    loop = asyncio.new_event_loop()

    def make(seq: int, new: int = 8) -> Request:
        prompt = np.arange(2, 5 + seq % 4, dtype=np.int32)
        return Request(Ticket(seq, 0, "", prompt, Sampling(1.0, new, ()), (), Version(0, 0)), (), loop.create_future())

    yield make
    loop.close()


def test_a_late_request_joins_within_patience_steps_of_a_free_slot(make_request) -> None:
    scheduler = Scheduler(slots=100, refill_share=0.1)
    for step in range(5):
        assert scheduler.newcomers(free=0, active=100) == [], step
    late = make_request(1)
    scheduler.add(late)
    assert scheduler.newcomers(free=0, active=100) == []
    waited = 0
    while not (joined := scheduler.newcomers(free=1, active=99)):
        waited += 1
    assert joined == [late]
    assert waited == PATIENCE


def test_newcomers_join_at_once_when_a_refill_is_full_or_nothing_runs(make_request) -> None:
    scheduler = Scheduler(slots=100, refill_share=0.1)
    requests = [make_request(seq) for seq in range(30)]
    for each in requests:
        scheduler.add(each)
    assert scheduler.newcomers(free=9, active=91) == []
    assert scheduler.newcomers(free=10, active=90) == requests[:10]
    assert scheduler.newcomers(free=5, active=0) == requests[10:15]
    assert scheduler.drop(requests[20])
    assert not scheduler.drop(requests[0])
    assert scheduler.newcomers(free=100, active=0) == [*requests[15:20], *requests[21:]]
    assert len(scheduler) == 0


def test_even_uniforms_draw_every_token_as_often_as_it_is_likely() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1)) * 2
    count = 20000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids, logps = draw(logits.expand(count, 50), uniform, PLAIN)
    share = torch.bincount(ids, minlength=50) / count
    p = torch.softmax(logits[0], -1)
    assert (share - p).abs().max() <= 1.01 / count
    torch.testing.assert_close(logps.exp(), p[ids])


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.floats(0.01, 1.0))
def test_no_draw_leaves_the_cut_support(vocabulary: int, seed: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, vocabulary, generator=generator) * 30
    uniform = torch.tensor([0.0, 1e-300, 1e-12, 0.3, 0.5, 0.9, 1 - 2**-20, 1 - 2**-40], dtype=torch.float64)
    ones = torch.ones(8, 1)
    shape = Shape(None, ones.double() * top_p, torch.full((8, 1), 5))
    for each in (PLAIN, shape):
        ids, logps = draw(logits, uniform, each)
        assert int(ids.max()) < vocabulary
        assert torch.isfinite(logps).all()
        assert (logps <= 0).all()


def test_a_longer_answer_begins_with_the_same_numbers() -> None:
    uniforms = Uniforms(3)
    short = uniforms.of(5, 0, "", 10)
    assert np.array_equal(uniforms.of(5, 0, "", 40)[:10], short)
    others = [uniforms.of(6, 0, "", 10), uniforms.of(5, 1, "", 10), uniforms.of(5, 0, "e", 10), Uniforms(4).of(5, 0, "", 10)]
    assert not any(np.array_equal(short, other) for other in others)
    many = np.concatenate([uniforms.of(seq, 0, "", 50) for seq in range(2000)])
    assert 0 <= many.min() < many.max() < 1
    assert abs(many.mean() - 0.5) < 0.005


def run_to_end(batch: Batch, requests: list[Request]) -> dict[int, Completion]:
    done = batch.join(requests, Version(0, 0))
    while batch.active:
        done += batch.step()
        batch.compact()
    return {each.ticket.seq: completion for each, completion in done}


def test_columns_follow_what_is_in_flight_and_rows_close_up(students: dict[str, Path], make_request) -> None:
    student = load_student(students["llama"], dtype=torch.float32, device=CPU)
    forward = FusedForward(student, slots=8)
    widths: list[int] = []
    decode = forward.decode
    forward.decode = lambda ids, reach: (widths.append(len(ids)), decode(ids, reach))[1]  # type: ignore[method-assign]
    with torch.inference_mode():
        batch = Batch(forward, slots=8, seed=1, device=CPU)
        answers = run_to_end(batch, [make_request(seq, new=3 + 9 * seq) for seq in range(8)])
        assert forward.cache.columns >= 3 + 3 + 9 * 7
        assert [len(answers[seq].response_ids) for seq in range(8)] == [3 + 9 * seq for seq in range(8)]
        assert widths[0] == 8
        assert widths[-1] == 1
        run_to_end(batch, [make_request(1, new=3)])
    assert forward.cache.columns < 20
    assert batch.free == 8


def test_a_request_that_leaves_frees_its_slot_for_good(students: dict[str, Path], make_request) -> None:
    student = load_student(students["llama"], dtype=torch.float32, device=CPU)
    with torch.inference_mode():
        batch = Batch(FusedForward(student, slots=2), slots=2, seed=1, device=CPU)
        gone, stays = make_request(1, new=9), make_request(2, new=9)
        assert batch.join([gone, stays], Version(0, 0)) == []
        batch.leave(gone)
        batch.leave(gone)
        assert (batch.free, batch.active) == (1, 1)
        finished = []
        while batch.active:
            finished += batch.step()
    assert [each for each, _ in finished] == [stays]
