"""Tokens (prompt + response) per CPU-second of the learner's whole step with top-8: median of several steps, as JSON.

A step is packing, forward, loss, backward, clipping and the optimizer, at the example's batch of 64 samples; beside it, what
a publication's export and a checkpoint cost. It starts itself again with the environment that `reflux run` gives its roles.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from learner.losses.topk import topk_reverse_kl
from learner.megatron.architecture import read_architecture
from learner.megatron.trainer import MegatronTrainer
from learner.training import TeacherTargets, TrainerSettings, TrainingSample

_EXAMPLE = Path(__file__).parent.parent / "examples/arithmetic/models/student"
_FLOOR = 28_000
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824", "OMP_NUM_THREADS": "1"}


def example_batch(count: int, vocabulary: int, seed: int) -> list[TrainingSample]:
    """Lengths of the arithmetic example: chains of two to four operations with their scratchpads."""
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    batch = []
    for seq in range(count):
        steps = draw.choice((2, 3, 4))
        prompt, response = 3 * steps + 4, 7 * steps + 16 + draw.randint(-2, 2)
        logp = np.log(rng.dirichlet(np.full(vocabulary, 0.2), response).clip(1e-8)).astype(np.float32)
        top_ids = np.argsort(-logp, 1)[:, :8].astype(np.int32)
        ids = rng.integers(0, vocabulary, prompt + response, dtype=np.int32)
        batch.append(
            TrainingSample(
                seq=seq,
                prompt_ids=ids[:prompt],
                response_ids=ids[prompt:],
                behaviour_T=np.take_along_axis(logp, ids[prompt:, None], 1)[:, 0],
                mask_T=np.ones(response, np.bool_),
                lag_T=np.zeros(response, np.int32),
                targets=(TeacherTargets("teacher", 1.0, logp[:, 0], top_ids, np.take_along_axis(logp, top_ids, 1)),),
            )
        )
    return batch


def measure(directory: Path, dtype: str, budget: int, steps: int) -> dict[str, object]:
    """One dtype and micro-batch budget."""
    trainer = MegatronTrainer.build(
        TrainerSettings(
            student=directory,
            dtype=dtype,  # type: ignore[arg-type]
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=0.1,
            max_grad_norm=1.0,
            token_budget=budget,
            seed=0,
        )
    )
    vocabulary = read_architecture(directory).vocabulary
    batches = [example_batch(64, vocabulary, seed) for seed in range(8)]
    rates = []
    for step in range(steps + 5):  # the first ones warm up
        batch = batches[step % len(batches)]
        seconds = _cpu_s(lambda batch=batch: trainer.step(batch, topk_reverse_kl, 1e-3))  # type: ignore[misc]
        rates.append(sum(sample.length for sample in batch) / seconds)
    median = statistics.median(rates[5:])
    with tempfile.TemporaryDirectory() as temporary:
        saves = [_cpu_s(lambda n=n: trainer.save(Path(temporary) / str(n))) for n in range(3)]  # type: ignore[misc]
    exports = [_cpu_s(lambda: trainer.export(torch.bfloat16)) for _ in range(5)]
    trainer.close()
    return {
        "dtype": dtype,
        "micro_batch_tokens": budget,
        "tokens_per_cpu_s": round(median),
        "lowest": round(min(rates[5:])),
        "highest": round(max(rates[5:])),
        "floor": _FLOOR,
        "reached": median >= _FLOOR,
        "export_cpu_ms": round(1000 * statistics.median(exports), 2),
        "checkpoint_cpu_ms": round(1000 * statistics.median(saves)),
    }


def _cpu_s(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=_EXAMPLE, help="a model directory (default: the example's student)")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    parser.add_argument("--micro-batch-tokens", type=int, action="append")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    if any(os.environ.get(key) != value for key, value in _ENVIRONMENT.items()):
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _ENVIRONMENT | paths)
    results = [
        measure(arguments.model, dtype, budget, arguments.steps)
        for dtype in arguments.dtype or ["float32"]
        for budget in arguments.micro_batch_tokens or [8192]
    ]
    print(json.dumps({"student": str(arguments.model.name), "results": results}, indent=1))


if __name__ == "__main__":
    main()
