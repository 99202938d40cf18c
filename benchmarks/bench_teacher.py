"""Tokens (prompt + response) per CPU-second of the torch teacher with top-8: median of several repetitions, as JSON.

Start it with MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ raised and one OpenMP thread, as `reflux run` starts its roles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from common.messages import Completion, Rollout, Sampling, Span, Ticket, Version
from common.pulse import Pulse
from scorers.teachers.torch.digest import weights_digest
from scorers.teachers.torch.loading import load_causal_model
from scorers.teachers.torch.teacher import TorchTeacher

_EXAMPLE = Path(__file__).parent.parent / "examples/arithmetic/models/teacher"
_FLOORS = {"float32": 55_000, "bfloat16": 85_000}
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824", "OMP_NUM_THREADS": "1"}


def stand_in(directory: Path) -> Path:
    """A random model of the example teacher's shape."""
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=24,
        hidden_size=128,
        num_hidden_layers=3,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=128,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return directory


def example_rollouts(count: int, vocabulary: int) -> list[Rollout]:
    """Lengths of the arithmetic example: chains of two to four operations with their scratchpads."""
    draw, rng = random.Random(1), np.random.default_rng(1)
    sampling, version = Sampling(1.0, 64, (1,)), Version(1, 0)
    rollouts = []
    for seq in range(count):
        steps = draw.choice((2, 3, 4))
        prompt = rng.integers(0, vocabulary, 3 * steps + 4, dtype=np.int32)
        response = rng.integers(0, vocabulary, 7 * steps + 16 + draw.randint(-2, 2), dtype=np.int32)
        ticket = Ticket(seq, 0, "", prompt, sampling, (), version)
        spans = (Span(1, 0, len(response), True),)
        rollouts.append(Rollout(ticket, Completion(response, np.zeros(len(response), np.float32), spans, "stop")))
    return rollouts


def measure(directory: Path, dtype: str, budget: int, samples: int, repetitions: int) -> dict[str, object]:
    """One dtype."""
    model = load_causal_model(directory, getattr(torch, dtype), torch.device("cpu"))
    pulse = Pulse()
    teacher = TorchTeacher(
        name="bench",
        model=model,
        digest=weights_digest(directory),
        top_k=8,
        top_vocabulary=model.vocabulary,
        batch_tokens=budget,
        pulse=pulse,
    )
    rollouts = example_rollouts(samples, AutoConfig.from_pretrained(directory).vocab_size)
    tokens = sum(len(r.ticket.prompt_ids) + len(r.completion.response_ids) for r in rollouts)
    rates = asyncio.run(_rates(teacher, rollouts, tokens, repetitions))
    median = statistics.median(rates)
    return {
        "dtype": dtype,
        "batch_tokens": budget,
        "tokens_per_cpu_s": round(median),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "floor": _FLOORS[dtype],
        "reached": median >= _FLOORS[dtype],
    }


async def _rates(teacher: TorchTeacher, rollouts: list[Rollout], tokens: int, repetitions: int) -> list[float]:
    rates = []
    for repetition in range(repetitions + 1):  # the first warms up
        begin = time.process_time()
        await teacher.score(rollouts)
        if repetition:
            rates.append(tokens / (time.process_time() - begin))
    await teacher.aclose()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model directory (default: the example's teacher, else a random one of its shape)")
    parser.add_argument("--dtype", action="append", choices=sorted(_FLOORS))
    parser.add_argument("--batch-tokens", type=int, action="append")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    if any(os.environ.get(key) != value for key, value in _ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.model or (_EXAMPLE if _EXAMPLE.is_dir() else stand_in(Path(temporary)))
        results = [
            measure(directory, dtype, budget, arguments.samples, arguments.repetitions)
            for dtype in arguments.dtype or ["float32", "bfloat16"]
            for budget in arguments.batch_tokens or [4096]
        ]
    print(json.dumps({"teacher": directory.name if directory == _EXAMPLE else "random, of its shape", "results": results}, indent=1))


if __name__ == "__main__":
    main()
