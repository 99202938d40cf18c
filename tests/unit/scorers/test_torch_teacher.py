"""The torch teacher against plain float64 forwards."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, VOCABULARY, make_rollout, random_rollouts, save_model
from transformers import AutoConfig, AutoModelForCausalLM

from common.errors import Rejected
from common.messages import Rollout, TeacherScore
from common.pulse import Pulse
from scorers.teachers.torch import forward
from scorers.teachers.torch.digest import weights_digest
from scorers.teachers.torch.last_mlp import last_mlp
from scorers.teachers.torch.loading import load_causal_model
from scorers.teachers.torch.short import ShortBody
from scorers.teachers.torch.teacher import TorchTeacher

torch.set_num_threads(1)
Scores = list[TeacherScore | Rejected]


@asynccontextmanager
async def teacher_of(
    directory: Path, *, dtype: torch.dtype = torch.float32, budget: int = 200, top_k: int = 5, top_vocabulary: int = VOCABULARY
) -> AsyncIterator[TorchTeacher]:
    teacher = TorchTeacher(
        name="t",
        model=load_causal_model(directory, dtype, torch.device("cpu")),
        digest=weights_digest(directory),
        top_k=top_k,
        top_vocabulary=top_vocabulary,
        batch_tokens=budget,
        pulse=Pulse(),
    )
    yield teacher
    await teacher.aclose()


async def scores_of(directory: Path, rollouts: list[Rollout], **options: object) -> Scores:
    async with teacher_of(directory, **options) as teacher:
        return await teacher.score(rollouts)


def plain_logprobs(directory: Path, rollout: Rollout) -> np.ndarray:
    """[T, V] by the model's own forward in float64."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    prompt, response = rollout.ticket.prompt_ids.tolist(), rollout.completion.response_ids.tolist()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
async def test_log_probabilities_and_top_k_are_those_of_a_plain_float64_forward(family: str, tmp_path: Path) -> None:
    save_model(tmp_path, family)
    rollouts = random_rollouts(12)
    for rollout, score in zip(rollouts, await scores_of(tmp_path, rollouts), strict=True):
        plain = plain_logprobs(tmp_path, rollout)
        ids = rollout.completion.response_ids
        np.testing.assert_allclose(score.logprobs, plain[np.arange(len(ids)), ids], atol=2e-5)
        np.testing.assert_allclose(score.top_logprobs, -np.sort(-plain)[:, :5], atol=2e-5)
        np.testing.assert_allclose(np.take_along_axis(plain, score.top_ids.astype(int), 1), score.top_logprobs, atol=2e-5)
        assert score.logprobs.dtype == score.top_logprobs.dtype == np.float32
        assert score.top_ids.dtype == np.int32
        assert (score.teacher, score.digest, score.clamped) == ("t", weights_digest(tmp_path), 0)


async def test_bfloat16_stays_near_float64(tmp_path: Path) -> None:
    save_model(tmp_path)
    rollouts = random_rollouts(8)
    differences = []
    for rollout, score in zip(rollouts, await scores_of(tmp_path, rollouts, dtype=torch.bfloat16), strict=True):
        ids = rollout.completion.response_ids
        differences.append(np.abs(score.logprobs - plain_logprobs(tmp_path, rollout)[np.arange(len(ids)), ids]))
    assert 1e-6 < np.concatenate(differences).mean() < 0.1


async def test_a_score_does_not_depend_on_the_company(tmp_path: Path) -> None:
    save_model(tmp_path)
    rollouts = random_rollouts(20)
    together = await scores_of(tmp_path, rollouts, budget=300)
    for rollout, score in zip(rollouts, together, strict=True):
        [alone] = await scores_of(tmp_path, [rollout])
        np.testing.assert_allclose(score.logprobs, alone.logprobs, atol=1e-5)


async def test_a_budget_of_one_token_gives_the_same_bits_in_any_company(tmp_path: Path) -> None:
    save_model(tmp_path)
    rollouts = random_rollouts(10)
    together = await scores_of(tmp_path, rollouts, budget=1)
    backwards = await scores_of(tmp_path, rollouts[::-1], budget=1)
    for one, other in zip(together, backwards[::-1], strict=True):
        assert one.logprobs.tobytes() == other.logprobs.tobytes()


async def test_the_head_sees_response_rows_only_and_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path)
    rollouts = random_rollouts(10)
    whole = await scores_of(tmp_path, rollouts)
    seen: list[int] = []
    monkeypatch.setattr(forward, "_CHUNK_ELEMENTS", 7 * VOCABULARY)
    async with teacher_of(tmp_path) as teacher:
        teacher._model.head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
        chunked = await teacher.score(rollouts)
    assert max(seen) == 7
    assert sum(seen) == sum(len(rollout.completion.response_ids) for rollout in rollouts)
    for one, other in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_mlp_sees_the_positions_that_are_read_and_gives_the_numbers_of_the_whole(family: str, tmp_path: Path) -> None:
    model = replace(load_causal_model(save_model(tmp_path, family), torch.float32, torch.device("cpu")), short=None)
    seen: list[int] = []
    for layer in model.body.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[:-1].numel()))
    ids_BL = torch.arange(24).view(2, 12)
    read_R = torch.tensor([3, 4, 20])
    with torch.inference_mode():
        some_RH = model.hidden(ids_BL, read_R)
        assert seen == [24, 3]
        whole_BLH = model.body(input_ids=ids_BL, use_cache=False).last_hidden_state
    assert seen[2:] == [24, 24]
    torch.testing.assert_close(some_RH, whole_BLH.flatten(0, 1)[read_R], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_short_sequences_have_the_hidden_states_of_the_modelling_code(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = load_causal_model(save_model(tmp_path, family), dtype, torch.device("cpu"))
    assert model.short is not None
    whole = replace(model, short=None)
    for batch, length in ((1, 1), (3, 17), (40, 30)):
        ids_BL = torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))
        read_R = torch.arange(0, batch * length, 2)
        with torch.inference_mode():
            ours, theirs = model.hidden(ids_BL, read_R).float(), whole.hidden(ids_BL, read_R).float()
        tolerance = 2e-5 if dtype == torch.float32 else 0.1
        assert ((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


def test_long_sequences_and_those_beyond_a_window_go_through_the_modelling_code(tmp_path: Path) -> None:
    model = load_causal_model(save_model(tmp_path), torch.float32, torch.device("cpu"))
    assert model.short is not None
    asked: list[int] = []
    model.body.register_forward_hook(lambda _module, _inputs, output: asked.append(output.last_hidden_state.shape[1]))
    with torch.inference_mode():
        for length in (model.short.longest, model.short.longest + 1):
            model.hidden(torch.zeros(1, length, dtype=torch.int64), torch.tensor([0]))
    assert asked == [model.short.longest + 1]
    config = AutoConfig.from_pretrained(tmp_path)
    config.sliding_window = 16
    windowed = AutoModelForCausalLM.from_config(config)
    assert ShortBody(windowed.requires_grad_(requires_grad=False)).longest == 16


def test_a_weight_that_is_no_number_is_not_hidden_by_the_short_pass(tmp_path: Path) -> None:
    model = load_causal_model(save_model(tmp_path), torch.float32, torch.device("cpu"))
    model.body.layers[0].self_attn.k_proj.weight[3] = torch.nan
    with torch.inference_mode():
        found = model.hidden(torch.zeros(2, 9, dtype=torch.int64), torch.arange(18))
    assert torch.isnan(found).all()


def test_an_mlp_of_another_kind_is_left_alone() -> None:
    experts = torch.nn.ModuleDict({"gate": torch.nn.Linear(4, 2), "experts": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    bodies = [torch.nn.Module() for _ in range(3)]
    bodies[1].layers = torch.nn.ModuleList([torch.nn.ModuleDict({"mlp": experts})])
    bodies[2].layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    assert [last_mlp(body) for body in bodies] == [None, None, None]


async def test_without_top_k_only_the_sampled_tokens_are_scored(tmp_path: Path) -> None:
    save_model(tmp_path)
    [score] = await scores_of(tmp_path, random_rollouts(1), top_k=0)
    assert score.top_ids is None
    assert score.top_logprobs is None


async def test_top_ids_stay_within_what_the_student_can_express(tmp_path: Path) -> None:
    save_model(tmp_path)
    rollout = make_rollout([1, 2, 3], list(range(20)))
    [score] = await scores_of(tmp_path, [rollout], top_vocabulary=9, top_k=12)
    assert score.top_ids.shape == (20, 9)
    assert score.top_ids.max() < 9
    expected = -np.sort(-plain_logprobs(tmp_path, rollout)[:, :9])
    np.testing.assert_allclose(score.top_logprobs, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [
        (make_rollout([1], [VOCABULARY]), "outside the vocabulary"),
        (make_rollout([-1], [2]), "token id -1 is outside"),
        (make_rollout([], [2]), "a prompt without tokens"),
        (make_rollout([2], []), "a response without tokens"),
        (make_rollout([1] * 40, [1] * 25), "65 tokens are more than the context"),
    ],
)
async def test_what_cannot_be_computed_is_rejected_and_the_rest_is_scored(rollout: Rollout, reason: str, tmp_path: Path) -> None:
    save_model(tmp_path)
    good = make_rollout([1, 2], [3, 4])
    before, rejected, after = await scores_of(tmp_path, [good, rollout, good])
    assert isinstance(rejected, Rejected)
    assert reason in rejected.reason
    assert before.logprobs.shape == after.logprobs.shape == (2,)


def poison(value: float) -> Callable[[torch.nn.Module], None]:
    def change(head: torch.nn.Module) -> None:
        head.weight[:] = value

    return change


def overflow_one_id(head: torch.nn.Module) -> None:
    head.weight[5] = -1e30


@pytest.mark.parametrize(("change", "reason"), [(poison(float("nan")), "NaN"), (poison(0.0), "uniform"), (poison(float("inf")), "NaN")])
async def test_a_broken_head_is_rejected(change: Callable[[torch.nn.Module], None], reason: str, tmp_path: Path) -> None:
    save_model(tmp_path, "qwen2")
    async with teacher_of(tmp_path) as teacher:
        with torch.no_grad():
            change(teacher._model.head)
        [result] = await teacher.score([make_rollout([1, 2], [3, 4])])
    assert isinstance(result, Rejected)
    assert reason in result.reason


async def test_an_impossible_token_is_clamped_and_counted(tmp_path: Path) -> None:
    save_model(tmp_path, "qwen2")
    async with teacher_of(tmp_path) as teacher:
        with torch.no_grad():
            row = teacher._model.head.weight
            row[5] = row[4] * -1e9
            row[6] = row[4] * 1e9
        [score] = await teacher.score([make_rollout([1, 2], [5, 6, 5, 6])])
    assert score.clamped > 0
    assert score.logprobs.min() == -1e4


def test_the_digest_follows_the_bytes_not_the_place(tmp_path: Path) -> None:
    one, same, other = save_model(tmp_path / "a"), save_model(tmp_path / "b"), save_model(tmp_path / "c", seed=1)
    assert weights_digest(one) == weights_digest(same) != weights_digest(other)
    save_model(one, seed=2)
    assert weights_digest(one) != weights_digest(same)
