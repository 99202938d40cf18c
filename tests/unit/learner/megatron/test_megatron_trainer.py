"""One optimizer step is the exact token-mean gradient of the whole batch, and can be repeated from a checkpoint."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron_cases import MakeStudent, MakeTrainer, reference_loss, samples_of, squared_distance

from common.errors import ConfigError
from learner.megatron import checkpoint
from learner.megatron.trainer import MegatronTrainer
from learner.training import LossInputs, LossOutput, StepStats


def run(trainer: MegatronTrainer, steps: int, *, lr: float = 1e-2) -> list[StepStats]:
    """Steps over different batches of unequal samples."""
    return [trainer.step(samples_of(7, seed=seed), squared_distance, lr) for seed in range(steps)]


@pytest.mark.parametrize(("family", "budget"), [("qwen2", 1), ("qwen2", 60), ("qwen2", 10_000), ("qwen3_moe", 60)])
def test_loss_and_gradient_norm_are_those_of_one_token_mean(
    family: str, budget: int, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    student, samples = make_student(family, tied=False), samples_of(7)
    stats = make_trainer(student, token_budget=budget).step(samples, squared_distance, 0.0)
    expected, model = reference_loss(student, samples)
    expected.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert stats.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert stats.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert stats.tokens == sum(sample.trained for sample in samples)
    assert stats.processed == sum(sample.length for sample in samples)
    assert stats.micro_batches == {1: 7, 60: 4, 10_000: 1}[budget] or budget == 60


def test_three_steps_follow_torchs_adamw_on_the_hugging_face_model(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student, samples = make_student("qwen3", tied=True), samples_of(5)
    trainer = make_trainer(student, weight_decay=0.0, max_grad_norm=0.0)
    losses = [trainer.step(samples, squared_distance, 1e-3).loss for _ in range(3)]
    loss, model = reference_loss(student, samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    loss.backward()
    optimizer.step()
    model.save_pretrained(student)
    assert losses[1] == pytest.approx(float(reference_loss(student, samples)[0].detach()), rel=1e-4)
    assert losses[2] < losses[1] < losses[0]


def test_a_rank_without_samples_still_takes_the_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    before = trainer.export(torch.float32)
    stats = trainer.step([], squared_distance, 1e-2)
    assert (stats.loss, stats.tokens, stats.micro_batches, stats.grad_norm) == (0.0, 0, 1, 0.0)
    assert before.keys() == trainer.export(torch.float32).keys()


def test_samples_without_trained_tokens_change_nothing(make_trainer: MakeTrainer) -> None:
    samples = samples_of(4)
    masked = dataclasses.replace(samples[0], mask_T=np.zeros_like(samples[0].mask_T))
    with_it = make_trainer().step([masked, *samples[1:]], squared_distance, 1e-2)
    without = make_trainer().step(samples[1:], squared_distance, 1e-2)
    assert with_it.loss == pytest.approx(without.loss, rel=1e-6)
    assert with_it.grad_norm == pytest.approx(without.grad_norm, rel=1e-5)


def test_every_teacher_counts_with_its_weight(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student = make_student("llama")
    samples = [*samples_of(3, seed=1), *samples_of(3, seed=2, teachers=("b", "a"), top_k=0)]
    stats = make_trainer(student).step(samples, squared_distance, 0.0)
    assert stats.loss == pytest.approx(float(reference_loss(student, samples)[0].detach()), rel=1e-5)
    assert list(stats.kl_by_teacher) == ["a", "b", "teacher"]
    tokens = {True: sum(s.trained for s in samples[:3]), False: sum(s.trained for s in samples[3:])}
    halves = 0.5 * (stats.kl_by_teacher["a"] + stats.kl_by_teacher["b"])
    total = stats.kl_by_teacher["teacher"] * tokens[True] + halves * tokens[False]
    assert stats.metrics["kl"] == pytest.approx(total / stats.tokens, rel=1e-5)


def test_a_loss_sees_the_position_and_lag_of_every_token(make_trainer: MakeTrainer) -> None:
    seen: list[LossInputs] = []

    def spy(inputs: LossInputs) -> LossOutput:
        seen.append(inputs)
        return squared_distance(inputs)

    samples = samples_of(1)
    make_trainer().step(samples, spy, 0.0)
    kept = torch.from_numpy(samples[0].mask_T)
    assert torch.equal(seen[0].position_R, torch.arange(len(kept), dtype=torch.int32)[kept])
    assert torch.equal(seen[0].lag_R, torch.from_numpy(samples[0].lag_T)[kept])
    assert torch.equal(seen[0].behaviour_R, torch.from_numpy(samples[0].behaviour_T)[kept])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_checkpoint_takes_the_very_next_step(
    dtype: str, tmp_path: Path, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    student = make_student("qwen3", tied=False)
    first = make_trainer(student, dtype=dtype)
    run(first, 2)
    first.save(tmp_path / "state")
    drawn, expected = torch.rand(3), run(first, 3)
    weights = first.export(torch.float32)
    second = make_trainer(student, dtype=dtype)
    second.load(tmp_path / "state")
    assert torch.equal(torch.rand(3), drawn)
    found = run(second, 3)
    assert [(s.step, s.loss, s.grad_norm) for s in found] == [(s.step, s.loss, s.grad_norm) for s in expected]
    again = second.export(torch.float32)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_that_is_written_beside_training_is_of_the_step_at_which_it_was_begun(
    dtype: str, tmp_path: Path, make_student: MakeStudent, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, trained, write = make_student("qwen3"), threading.Event(), checkpoint.Snapshot.write
    first = make_trainer(student, dtype=dtype)
    run(first, 2)
    first.save(tmp_path / "waited")
    monkeypatch.setattr(checkpoint.Snapshot, "write", lambda *arguments: trained.wait(60) and write(*arguments))
    written = first.begin_save(tmp_path / "beside")
    expected = run(first, 3)
    trained.set()
    written()
    names = [path.name for path in (tmp_path / "waited").iterdir() if path.name != ".metadata"]
    assert all((tmp_path / "waited" / name).read_bytes() == (tmp_path / "beside" / name).read_bytes() for name in names)
    second = make_trainer(student, dtype=dtype)
    second.load(tmp_path / "beside")
    assert [(s.step, s.loss, s.grad_norm) for s in run(second, 3)] == [(s.step, s.loss, s.grad_norm) for s in expected]


def test_bfloat16_keeps_small_updates_in_its_master_weights(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(dtype="bfloat16", weight_decay=0.0)
    before = trainer.export(torch.bfloat16)
    for _ in range(40):
        trainer.step(samples_of(3), squared_distance, 1e-4)
    after = trainer.export(torch.bfloat16)
    moved = [(before[name] != after[name]).float().mean().item() for name in before if "proj" in name]
    assert min(moved) > 0.5  # one update alone is below what most of these bfloat16 weights can show


def test_recomputed_activations_give_the_same_gradient(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student = make_student()
    kept, recomputed = (run(make_trainer(student, recompute=flag), 2) for flag in (False, True))
    assert [s.grad_norm for s in kept] == pytest.approx([s.grad_norm for s in recomputed], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_update(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    before = trainer.export(torch.float32)
    with pytest.raises(ArithmeticError, match="loss of step 0 is nan"):
        trainer.step(samples_of(2), lambda inputs: LossOutput(inputs.student_logp_R * float("nan")), 1e-2)
    after = trainer.export(torch.float32)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_process_alone_has_one_process_group_for_everything(make_trainer: MakeTrainer) -> None:
    make_trainer()
    assert len(dist.distributed_c10d._world.pg_map) == 1
    assert parallel_state.get_tensor_model_parallel_group() is parallel_state.get_data_parallel_group() is dist.group.WORLD


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_optimizer_cannot_be_moved_off_a_gpu_that_is_not_there(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match="there is no GPU here: set it to 0"):
        make_trainer(optimizer_offload=0.5)
