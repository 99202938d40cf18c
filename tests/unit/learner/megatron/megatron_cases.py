"""Settings, samples, a loss, and what transformers says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from learner.megatron.trainer import MegatronTrainer
from learner.training import LossInputs, LossOutput, TeacherTargets, TrainerSettings, TrainingSample

VOCABULARY = 40
MakeStudent = Callable[..., Path]
MakeTrainer = Callable[..., MegatronTrainer]


def settings_for(student: Path, **changes: object) -> TrainerSettings:
    """Settings small enough that one batch makes several micro-batches."""
    values: dict[str, object] = {
        "student": student,
        "dtype": "float32",
        "betas": (0.9, 0.98),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "token_budget": 60,
        "seed": 3,
    }
    return TrainerSettings(**(values | changes))  # type: ignore[arg-type]


def samples_of(count: int, *, seed: int = 0, teachers: Sequence[str] = ("teacher",), top_k: int = 4) -> list[TrainingSample]:
    """Samples of unequal lengths, some of whose tokens do not train."""
    generator = np.random.default_rng(seed)
    return [_sample(generator, seq, teachers, top_k) for seq in range(count)]


def _sample(generator: np.random.Generator, seq: int, teachers: Sequence[str], top_k: int) -> TrainingSample:
    prompt, response = (int(n) for n in generator.integers((2, 1), (9, 25)))
    mask = generator.random(response) < 0.8
    mask[-1] = True
    return TrainingSample(
        seq=seq,
        prompt_ids=generator.integers(0, VOCABULARY, prompt).astype(np.int32),
        response_ids=generator.integers(0, VOCABULARY, response).astype(np.int32),
        behaviour_T=-generator.random(response).astype(np.float32),
        mask_T=mask,
        lag_T=generator.integers(0, 3, response).astype(np.int32),
        targets=tuple(_target(generator, name, 1 / len(teachers), response, top_k) for name in teachers),
    )


def _target(generator: np.random.Generator, name: str, weight: float, response: int, top_k: int) -> TeacherTargets:
    logp = np.log(generator.dirichlet(np.ones(VOCABULARY), response)).astype(np.float32)
    order = np.argsort(-logp, 1)[:, :top_k]
    top = {} if not top_k else {"top_ids_TK": order.astype(np.int32), "top_logprobs_TK": np.take_along_axis(logp, order, 1)}
    return TeacherTargets(name, weight, logp[:, 0].copy(), **top)


def squared_distance(inputs: LossInputs) -> LossOutput:
    """A loss that needs every differentiable input: (log π - log T)² on the sample and on the top-k."""
    loss = (inputs.student_logp_R - inputs.teacher_logp_R).square()
    if inputs.student_top_RK is not None and inputs.teacher_top_RK is not None:
        loss = loss + (inputs.student_top_RK - inputs.teacher_top_RK).square().mean(-1)
    return LossOutput(loss, {"kl": loss.detach(), "position": inputs.position_R.float()})


def reference_loss(student: Path, samples: Sequence[TrainingSample]) -> tuple[torch.Tensor, torch.nn.Module]:
    """The same token-mean through transformers, one sample at a time, with the whole vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    total, tokens = torch.zeros(()), 0
    for sample in samples:
        ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        logp = torch.log_softmax(model(ids[None]).logits[0].float(), -1)[len(sample.prompt_ids) - 1 : -1]
        keep = torch.from_numpy(np.asarray(sample.mask_T, bool))
        for target in sample.targets:
            own = logp.gather(1, torch.from_numpy(sample.response_ids).long()[:, None])[:, 0]
            loss = (own - torch.from_numpy(target.logprobs_T)).square()
            if target.top_ids_TK is not None and target.top_logprobs_TK is not None:
                top = logp.gather(1, torch.from_numpy(target.top_ids_TK).long())
                loss = loss + (top - torch.from_numpy(target.top_logprobs_TK)).square().mean(-1)
            total = total + target.weight * loss[keep].sum()
        tokens += int(keep.sum())
    return total / tokens, model


def edit_config(directory: Path, **changes: object) -> None:
    """Set keys of a config.json; None removes one."""
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
