"""One stage on the device that is there: CUDA where there is one, else the CPU (which proves the benchmark, not the machine)."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu.shapes import Sample, Shape
from common.config import RunConfig
from common.messages import Completion, Rollout, Sampling, Span, Ticket, Version
from common.pulse import Pulse
from learner.losses.topk import topk_reverse_kl
from learner.megatron.trainer import MegatronTrainer
from learner.training import TeacherTargets, TrainerSettings, TrainingSample
from producers.engines import open_engine
from scorers.teachers.torch.opening import open_torch_teacher

TOP_K = 8


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage is measured with."""

    directory: Path
    shape: Shape
    samples: Sequence[Sample]
    rounds: int
    budget: int  # tokens of a micro-batch or scoring batch
    slots: int
    recompute: bool


@dataclass(frozen=True, slots=True)
class Rate:
    """The median round."""

    tokens_per_s: float  # generated tokens for the engine, prompt and response tokens else
    flops_per_s: float


def learner(work: Work) -> Rate:
    """The whole step: packing, forward, top-k reverse KL, backward, clipping, AdamW with fp32 master weights."""
    trainer = MegatronTrainer.build(
        TrainerSettings(
            student=work.directory,
            dtype="bfloat16",
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=0.1,
            max_grad_norm=1.0,
            token_budget=work.budget,
            seed=0,
            recompute=work.recompute,
        )
    )
    batch = [training_sample(index, sample, work.shape.vocabulary) for index, sample in enumerate(work.samples)]
    try:
        seconds = _median_s(lambda: trainer.step(batch, topk_reverse_kl, 1e-6), work.rounds)
    finally:
        trainer.close()
    return _rate(work, seconds, passes=3)


def teacher(work: Work) -> Rate:
    """Scoring as a scorer does it: length-sorted batches, head on response rows, top-k and log-sum-exp."""
    scorer = open_torch_teacher(_configuration(work), "teacher", Pulse())
    rollouts = [rollout(index, sample) for index, sample in enumerate(work.samples)]

    async def rounds() -> float:
        took = []
        for _ in range(work.rounds + 1):
            begin = time.perf_counter()
            await scorer.score(rollouts)
            took.append(time.perf_counter() - begin)
        await scorer.aclose()
        return statistics.median(took[1:])

    return _rate(work, asyncio.run(rounds()), passes=1)


def engine(work: Work) -> Rate:
    """Continuous batching over the slots; every answer as long as its sample's response."""

    async def rounds() -> float:
        student = open_engine(_configuration(work), Pulse())
        took = []
        for turn in range(work.rounds + 1):
            tickets = [ticket(turn * len(work.samples) + index, sample) for index, sample in enumerate(work.samples)]
            begin = time.perf_counter()
            await asyncio.gather(*(student.generate(ticket) for ticket in tickets))
            took.append(time.perf_counter() - begin)
        await student.aclose()
        return statistics.median(took[1:])

    seconds = asyncio.run(rounds())
    rate = _rate(work, seconds, passes=1)
    return Rate(sum(len(sample.response_ids) for sample in work.samples) / seconds, rate.flops_per_s)


STAGES: dict[str, Callable[[Work], Rate]] = {"learner": learner, "teacher": teacher, "engine": engine}


def _median_s(step: Callable[[], object], rounds: int) -> float:
    """A step ends with its loss on the host, so that nothing is still under way on the device."""
    took = []
    for _ in range(rounds + 1):  # the first warms up
        begin = time.perf_counter()
        step()
        took.append(time.perf_counter() - begin)
    return statistics.median(took[1:])


def _rate(work: Work, seconds: float, passes: int) -> Rate:
    tokens = sum(sample.length for sample in work.samples)
    flops = sum(work.shape.forward_flops(len(sample.prompt_ids), len(sample.response_ids)) for sample in work.samples)
    return Rate(tokens / seconds, passes * flops / seconds)


def _configuration(work: Work) -> RunConfig:
    longest = max(len(sample.prompt_ids) for sample in work.samples)
    return RunConfig.model_validate(
        {
            "run": {"name": "bench-gpu"},
            "model": {"student": work.directory},
            "teachers": {"teacher": {"path": work.directory, "dtype": "bfloat16", "top_k": TOP_K}},
            "data": {"prompts": "none", "max_prompt_tokens": longest},
            "sampling": {"max_new_tokens": max(len(sample.response_ids) for sample in work.samples)},
            "evaluation": {"prompts": 0},
            "producer": {"slots": work.slots, "dtype": "bfloat16"},
            "scorer": {"batch_tokens": work.budget},
        }
    )


def training_sample(seq: int, sample: Sample, vocabulary: int) -> TrainingSample:
    rng, response = np.random.default_rng(seq), len(sample.response_ids)
    top_TK = np.log(rng.dirichlet(np.ones(TOP_K + 1), response).clip(1e-8))[:, :TOP_K].astype(np.float32)
    ids_TK = (rng.integers(0, vocabulary - TOP_K, (response, 1)) + np.arange(TOP_K)).astype(np.int32)
    return TrainingSample(
        seq=seq,
        prompt_ids=sample.prompt_ids,
        response_ids=sample.response_ids,
        behaviour_T=np.full(response, -1.0, np.float32),
        mask_T=np.ones(response, np.bool_),
        lag_T=np.zeros(response, np.int32),
        targets=(TeacherTargets("teacher", 1.0, top_TK[:, 0], ids_TK, top_TK),),
    )


def ticket(seq: int, sample: Sample) -> Ticket:
    sampling = Sampling(temperature=1.0, max_new_tokens=len(sample.response_ids), stop_token_ids=())
    return Ticket(seq, 0, str(seq), sample.prompt_ids, sampling, (), Version(0, 0))


def rollout(seq: int, sample: Sample) -> Rollout:
    response = len(sample.response_ids)
    completion = Completion(sample.response_ids, np.zeros(response, np.float32), (Span(1, 0, response, True),), "stop")
    return Rollout(ticket(seq, sample), completion)
