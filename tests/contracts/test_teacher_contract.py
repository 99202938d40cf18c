"""What every Teacher promises; a new adapter joins `ADAPTERS` and passes the same tests."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from router import router
from stand_in import stand_in

from common.config import parse_config
from common.errors import Rejected
from common.messages import Completion, Rollout, Sampling, Span, TeacherScore, TeacherShare, Ticket, Version
from common.pulse import Pulse
from scorers.teachers.base import Teacher

VOCABULARY = 31
TOP_K = 4


def save_model(directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.5, **shape)).save_pretrained(directory)


@asynccontextmanager
async def torch_teacher(directory: Path) -> AsyncIterator[Teacher]:
    from scorers.teachers.torch.digest import weights_digest
    from scorers.teachers.torch.loading import load_causal_model
    from scorers.teachers.torch.teacher import TorchTeacher

    save_model(directory)
    teacher = TorchTeacher(
        name="t",
        model=load_causal_model(directory, torch.float32, torch.device("cpu")),
        digest=weights_digest(directory),
        top_k=TOP_K,
        top_vocabulary=VOCABULARY,
        batch_tokens=100,
        pulse=Pulse(),
    )
    yield teacher
    await teacher.aclose()


@asynccontextmanager
async def asked_at(directory: Path, *urls: str) -> AsyncIterator[Teacher]:
    from scorers.teachers import open_teacher

    config = parse_config(
        {
            "run": {"name": "r"},
            "model": {"student": str(directory)},
            "teachers": {"t": {"path": str(directory), "kind": "sglang", "urls": list(urls), "top_k": TOP_K}},
            "data": {"prompts": "p"},
            "evaluation": {"prompts": 0},
        }
    )
    teacher = open_teacher(config, "t", Pulse())
    yield teacher
    await teacher.aclose()


@asynccontextmanager
async def sglang_teacher(directory: Path) -> AsyncIterator[Teacher]:
    save_model(directory)
    async with stand_in(directory) as one, stand_in(directory) as two, asked_at(directory, one.url, two.url) as teacher:
        yield teacher


@asynccontextmanager
async def routed_teacher(directory: Path) -> AsyncIterator[Teacher]:
    save_model(directory)
    async with stand_in(directory) as one, stand_in(directory) as two, router(one.url, two.url) as url, asked_at(directory, url) as teacher:
        yield teacher


ADAPTERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Teacher]]] = {
    "torch": torch_teacher,
    "sglang": sglang_teacher,
    "router": routed_teacher,
}


@pytest.fixture(params=ADAPTERS)
async def teacher(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Teacher]:
    async with ADAPTERS[request.param](tmp_path) as opened:
        yield opened


def rollout_of(prompt: list[int], response: list[int]) -> Rollout:
    ticket = Ticket(0, 0, "p", np.array(prompt, np.int32), Sampling(1.0, 9, ()), (TeacherShare("t", 1.0),), Version(1, 0))
    zeros = np.zeros(len(response), np.float32)
    return Rollout(ticket, Completion(np.array(response, np.int32), zeros, (Span(1, 0, len(response), True),), "stop"))


def mixed_rollouts() -> list[Rollout]:
    rng = np.random.default_rng(3)
    return [
        rollout_of(rng.integers(0, VOCABULARY, rng.integers(1, 12)).tolist(), rng.integers(0, VOCABULARY, rng.integers(1, 20)).tolist())
        for _ in range(15)
    ]


async def test_results_come_in_the_order_of_the_rollouts(teacher: Teacher) -> None:
    rollouts = mixed_rollouts()
    scores = await teacher.score(rollouts)
    assert [len(score.logprobs) for score in scores] == [len(rollout.completion.response_ids) for rollout in rollouts]
    backwards = await teacher.score(rollouts[::-1])
    for one, other in zip(scores, backwards[::-1], strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


async def test_every_score_carries_name_digest_and_arrays_of_the_wire(teacher: Teacher) -> None:
    for score in await teacher.score(mixed_rollouts()):
        assert isinstance(score, TeacherScore)
        assert (score.teacher, score.digest) == ("t", teacher.digest)
        assert score.logprobs.dtype == score.top_logprobs.dtype == np.float32
        assert score.top_ids.dtype == np.int32
        assert score.top_ids.shape == score.top_logprobs.shape == (len(score.logprobs), TOP_K)


async def test_top_k_is_best_first_and_agrees_with_the_sampled_token(teacher: Teacher) -> None:
    rollouts = mixed_rollouts()
    found = 0
    for rollout, score in zip(rollouts, await teacher.score(rollouts), strict=True):
        assert (np.diff(score.top_logprobs, axis=1) <= 0).all()
        assert (np.exp(score.top_logprobs).sum(1) <= 1 + 1e-4).all()
        positions, places = np.nonzero(score.top_ids == rollout.completion.response_ids[:, None])
        np.testing.assert_allclose(score.top_logprobs[positions, places], score.logprobs[positions], atol=1e-6)
        found += len(positions)
    assert found > 0


async def test_the_same_answer_after_a_longer_prompt_is_another_score(teacher: Teacher) -> None:
    one, other = await teacher.score([rollout_of([1, 2], [5, 6]), rollout_of([3, 1, 2], [5, 6])])
    assert np.abs(one.logprobs - other.logprobs).max() > 1e-3


async def test_a_bad_rollout_is_rejected_with_a_reason_and_spoils_nothing(teacher: Teacher) -> None:
    good = rollout_of([1], [2, 3])
    first, bad, last = await teacher.score([good, rollout_of([1], [VOCABULARY + 7]), good])
    assert isinstance(bad, Rejected)
    assert str(VOCABULARY + 7) in bad.reason
    np.testing.assert_allclose(first.logprobs, last.logprobs, atol=1e-6)


async def test_no_rollouts_give_no_scores(teacher: Teacher) -> None:
    assert await teacher.score([]) == []


@pytest.mark.parametrize("way", ["sglang", "router"])
async def test_servers_give_the_torch_teachers_log_probabilities(way: str, tmp_path: Path) -> None:
    rollouts = mixed_rollouts()
    async with torch_teacher(tmp_path) as here, ADAPTERS[way](tmp_path) as there:
        ours, theirs = await here.score(rollouts), await there.score(rollouts)
        assert here.digest == there.digest
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5, rtol=0)
        np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, atol=1e-5, rtol=0)
        np.testing.assert_array_equal(one.top_ids, other.top_ids)
