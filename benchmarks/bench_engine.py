"""Generated tokens per CPU-second of the torch engine, as JSON.

The whole engine is measured - event loop, scheduling, prefill and decode - by the CPU time of the process, after a warm-up, at several
slot counts; each figure is the median of the rounds. Without a model directory a random one of the example's shape answers with about
37 tokens. Start it as `make bench` does: one thread, malloc thresholds raised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from common.config import RunConfig
from common.messages import Ids, Sampling, Ticket, Version
from common.pulse import Pulse
from producers.engines import open_engine

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/arithmetic"


def random_student(directory: Path) -> Path:
    config = Qwen3Config(
        vocab_size=18,
        hidden_size=96,
        num_hidden_layers=2,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return directory


def example_prompts(model: Path, prompts: Path) -> list[Ids]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = prompts.read_text().splitlines()
    return [np.array(tokenizer(json.loads(line)["prompt"])["input_ids"], np.int32) for line in lines[:4096]]


def random_prompts() -> list[Ids]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 18, generator.integers(9, 16)).astype(np.int32) for _ in range(4096)]


def make_tickets(count: int, prompts: list[Ids], lengths: tuple[int, ...], first: int) -> list[Ticket]:
    """A random model never stops by itself: its lengths are dealt out as the example's answers have them."""
    dealt = np.random.default_rng(first).choice(lengths, count)
    return [
        Ticket(
            seq=first + index,
            attempt=0,
            prompt_id=str(index),
            prompt_ids=prompts[(first + index) % len(prompts)],
            sampling=Sampling(temperature=1.0, max_new_tokens=int(dealt[index]), stop_token_ids=()),
            slip=(),
            min_version=Version(0, 0),
        )
        for index in range(count)
    ]


async def measure(config: RunConfig, prompts: list[Ids], lengths: tuple[int, ...], *, samples: int, rounds: int) -> dict[str, object]:
    engine = open_engine(config, Pulse())
    rates, tokens = [], 0
    try:
        for turn in range(rounds + 1):
            tickets = make_tickets(samples if turn else samples // 4, prompts, lengths, first=turn * samples)
            begin = time.process_time()
            answers = await asyncio.gather(*(engine.generate(ticket) for ticket in tickets))
            spent = time.process_time() - begin
            tokens = sum(len(answer.response_ids) for answer in answers)
            rates.append(tokens / spent)
    finally:
        await engine.aclose()
    return {
        "tokens_per_cpu_s": round(statistics.median(rates[1:])),
        "rounds": [round(rate) for rate in rates[1:]],
        "tokens_per_answer": round(tokens / samples, 1),
    }


def configuration(student: Path, slots: int, dtype: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "bench"},
            "model": {"student": student},
            "teachers": {"none": {"path": student}},
            "data": {"prompts": "none", "max_prompt_tokens": 32},
            "sampling": {"max_new_tokens": 56},
            "evaluation": {"prompts": 0},
            "producer": {"slots": slots, "dtype": dtype},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a student's directory; default: the example's, else a random one")
    parser.add_argument("--prompts", type=Path, default=EXAMPLE / "train.jsonl", help="JSONL with `prompt`")
    parser.add_argument("--random", action="store_true", help="a random model even if the example's exists")
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--samples", type=int, default=2000, help="answers per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        example = EXAMPLE / "models/student"
        chosen = None if arguments.random else arguments.model or (example if example.is_dir() else None)
        prompts = random_prompts() if chosen is None else example_prompts(chosen, arguments.prompts)
        lengths = (25, 37, 49) if chosen is None else (56,)
        student = chosen or random_student(Path(scratch))
        report: dict[str, object] = {"model": chosen.name if chosen else "random", "dtype": arguments.dtype, "torch": torch.__version__}
        for slots in arguments.slots:
            config = configuration(student, slots, arguments.dtype)
            run = measure(config, prompts, lengths, samples=arguments.samples, rounds=arguments.rounds)
            report[f"slots_{slots}"] = asyncio.run(run)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
