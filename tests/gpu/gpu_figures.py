"""What learner, teacher and engine compute on the device that this process sees, as JSON; the parity tests run it with and without CUDA."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.shapes import SHAPES, Sample, draw_samples
from benchmarks.gpu.stages import rollout, ticket, training_sample
from common.config import RunConfig
from common.errors import Rejected
from common.messages import TeacherScore
from common.pulse import Pulse
from learner.losses.topk import topk_reverse_kl
from learner.megatron.trainer import MegatronTrainer
from learner.training import TrainerSettings
from producers.engines import open_engine
from scorers.teachers.torch.opening import open_torch_teacher

TINY = SHAPES["tiny"]
SAMPLES = draw_samples(12, TINY.vocabulary, 20, 30)
Scores = list[TeacherScore]


def configuration(directory: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "gpu"},
            "model": {"student": directory},
            "teachers": {"teacher": {"path": directory, "dtype": "float32", "top_k": 8}},
            "data": {"prompts": "none", "max_prompt_tokens": 64},
            "sampling": {"max_new_tokens": 64},
            "evaluation": {"prompts": 0},
            "producer": {"slots": 4, "dtype": "float32"},
        }
    )


async def scores(directory: Path, samples: list[Sample]) -> Scores:
    teacher = open_torch_teacher(configuration(directory), "teacher", Pulse())
    found = await teacher.score([rollout(seq, sample) for seq, sample in enumerate(samples)])
    await teacher.aclose()
    assert not [score for score in found if isinstance(score, Rejected)], found
    return [score for score in found if isinstance(score, TeacherScore)]


async def sampled(directory: Path) -> tuple[list[Sample], list[list[float]]]:
    """What the engine draws, and the log-probabilities it reports for it."""
    engine = open_engine(configuration(directory), Pulse())
    answers = await asyncio.gather(*(engine.generate(ticket(seq, sample)) for seq, sample in enumerate(SAMPLES)))
    await engine.aclose()
    drawn = [replace(sample, response_ids=answer.response_ids) for sample, answer in zip(SAMPLES, answers, strict=True)]
    return drawn, [answer.logprobs.tolist() for answer in answers]


def losses(directory: Path, dtype: str) -> list[float]:
    """Four steps on one batch."""
    settings = TrainerSettings(directory, dtype, (0.9, 0.98), 1e-8, 0.1, 1.0, token_budget=256, seed=0)  # type: ignore[arg-type]
    trainer = MegatronTrainer.build(settings)
    batch = [training_sample(seq, sample, TINY.vocabulary) for seq, sample in enumerate(SAMPLES)]
    found = [trainer.step(batch, topk_reverse_kl, 1e-2).loss for _ in range(4)]
    trainer.close()
    return found


def main() -> None:
    directory = Path(sys.argv[1])
    scored = asyncio.run(scores(directory, list(SAMPLES)))
    drawn, behaviour = asyncio.run(sampled(directory))
    found = {
        "teacher": [score.logprobs.tolist() for score in scored],
        "behaviour": behaviour,
        "behaviour_scored": [score.logprobs.tolist() for score in asyncio.run(scores(directory, drawn))],
        "losses": losses(directory, "float32"),
        "losses_bf16": losses(directory, "bfloat16"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
