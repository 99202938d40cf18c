"""Adapters train a frozen student, and what is exported is the merged model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from megatron_cases import MakeStudent, MakeTrainer, reference_loss, samples_of, squared_distance
from safetensors.torch import load_file, save_file

from common.config import RunConfig
from common.errors import ConfigError
from deploy.preflight.memory import in_adapters, learner_bytes, parameters
from learner.megatron.trainer import MegatronTrainer
from learner.training import StepStats

TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
LORA = {"lora_rank": 3, "lora_alpha": 6.0, "lora_targets": TARGETS}
IN_HUGGING_FACE = {
    "linear_qkv": {"q_proj", "k_proj", "v_proj"},
    "linear_proj": {"o_proj"},
    "linear_fc1": {"gate_proj", "up_proj"},
    "linear_fc2": {"down_proj"},
}


def run(trainer: MegatronTrainer, steps: int) -> list[StepStats]:
    return [trainer.step(samples_of(7, seed=seed), squared_distance, 1e-2) for seed in range(steps)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_adapters_leave_the_losses_and_the_files_as_they_were_to_the_last_bit(
    dtype: str, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    student = make_student("qwen2", tied=False, dtype=getattr(torch, dtype))
    whole = make_trainer(student, dtype=dtype).step(samples_of(7), squared_distance, 0.0)
    trainer = make_trainer(student, dtype=dtype, **LORA)
    stats = trainer.step(samples_of(7), squared_distance, 0.0)
    assert (stats.loss, stats.metrics) == (whole.loss, whole.metrics)
    assert 0 < stats.grad_norm < whole.grad_norm
    exported = trainer.export(getattr(torch, dtype))
    assert all(torch.equal(tensor, exported[name]) for name, tensor in load_file(student / "model.safetensors").items())


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_transformers_finds_the_losses_of_the_adapters_in_the_merged_files(
    family: str, tmp_path: Path, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    student, samples = make_student(family), samples_of(7, seed=9)
    trainer = make_trainer(student, **LORA)
    run(trainer, 4)
    shutil.copytree(student, tmp_path / "merged")
    save_file(trainer.export(torch.float32), tmp_path / "merged" / "model.safetensors", {"format": "pt"})
    expected, before = (float(reference_loss(directory, samples)[0].detach()) for directory in (tmp_path / "merged", student))
    assert abs(expected - before) > 1e-2 * before
    assert trainer.step(samples, squared_distance, 0.0).loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_only_the_targets_move_and_only_their_adapters_have_gradients_and_optimizer_state(
    target: str, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    student = make_student("qwen2")
    trainer = make_trainer(student, **LORA | {"lora_targets": (target,)})
    run(trainer, 2)
    parts, exported = trainer._parts, trainer.export(torch.float32)
    moved = {name for name, tensor in load_file(student / "model.safetensors").items() if not torch.equal(tensor, exported[name])}
    assert moved == {name for name in exported if name.split(".")[-2] in IN_HUGGING_FACE[target] and name.endswith(".weight")}
    with_gradient = {name: p.numel() for name, p in parts.student.named_parameters() if hasattr(p, "main_grad")}
    assert {name.split(".")[-2] for name in with_gradient} == {f"{target}_lora"}
    assert sum(p.numel() for group in parts.optimizer.param_groups for p in group["params"]) == sum(with_gradient.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_checkpoint_of_adapters_takes_the_very_next_step(
    dtype: str, tmp_path: Path, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    student = make_student("qwen3", tied=False)
    first = make_trainer(student, dtype=dtype, **LORA)
    run(first, 2)
    written = first.begin_save(tmp_path / "state")
    expected = run(first, 3)
    written()
    weights = first.export(torch.float32)
    second = make_trainer(student, dtype=dtype, **LORA)
    second.load(tmp_path / "state")
    found, again = run(second, 3), second.export(torch.float32)
    assert [(s.step, s.loss, s.grad_norm) for s in found] == [(s.step, s.loss, s.grad_norm) for s in expected]
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_recomputed_activations_give_adapters_the_same_gradient(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student = make_student()
    kept, recomputed = (run(make_trainer(student, recompute=flag, **LORA), 2) for flag in (False, True))
    assert [s.grad_norm for s in kept] == pytest.approx([s.grad_norm for s in recomputed], rel=1e-6)


def test_another_seed_draws_other_adapters(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student = make_student()
    norms = [run(make_trainer(student, seed=seed, **LORA), 1)[0].grad_norm for seed in (3, 3, 4)]
    assert norms[0] == norms[1] != norms[2]


def test_preflight_counts_the_parameters_of_the_adapters(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student = make_student("qwen2")
    parts = make_trainer(student, **LORA)._parts
    values = {"run": {"name": "r"}, "model": {"student": student}, "teachers": {"t": {"path": "/t"}}, "data": {"prompts": "/p"}}
    whole, adapted = (
        RunConfig.model_validate(values | {"evaluation": {"prompts": 0}, "learner": learner}) for learner in ({}, {"lora_rank": 3})
    )
    assert in_adapters(adapted, parts.architecture) == sum(p.numel() for p in parts.student.parameters() if p.requires_grad)
    saved = 12 * parameters(parts.architecture) - 16 * in_adapters(adapted, parts.architecture)
    assert learner_bytes(whole, parts.architecture) - learner_bytes(adapted, parts.architecture) == saved


def test_adapters_for_a_student_with_experts_are_refused(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match="adapters for a student with experts are not there"):
        make_trainer(make_student("qwen3_moe"), **LORA)
