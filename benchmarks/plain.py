"""The same work as bench_engine, bench_teacher and bench_learner, as one writes it with transformers alone: tokens per CPU-second, JSON.

engine: `generate` at batch 128, left-padded. teacher: right-padded batches, unsorted, log-softmax over the whole vocabulary, top-8.
learner: right-padded batch of 64, log-softmax over the whole vocabulary, reverse KL on the top-8, backward, clipping, fused AdamW.
Inputs, their lengths and the count of tokens are those of the benchmarks beside it, so the ratio of the two is fair on any machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any  # transformers' models are not typed

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from benchmarks.bench_engine import example_prompts
from benchmarks.bench_learner import example_batch
from benchmarks.bench_teacher import example_rollouts
from learner.training import TrainingSample

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/arithmetic"
MODELS = EXAMPLE / "models"
SEQUENCES = {"engine": 128, "teacher": 64, "learner": 64}  # of one batch

Rows = Sequence[npt.NDArray[np.int32]]
Work = Callable[[], int]
"""Does one batch; returns its tokens."""


def padded(rows: Rows, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask [B, L]."""
    longest = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for line, seen, row in zip(ids, mask, rows, strict=True):
        where = slice(longest - len(row), None) if left else slice(None, len(row))
        line[where], seen[where] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def engine(model: Any, batch: int) -> Work:
    prompts = example_prompts(MODELS / "student", EXAMPLE / "train.jsonl")[: 16 * batch]
    turn = 0
    stops = model.generation_config.eos_token_id
    stops_E = torch.tensor(stops if isinstance(stops, list) else [stops])

    def work() -> int:
        nonlocal turn
        rows = prompts[turn * batch :][:batch]
        turn = (turn + 1) % 16
        ids, mask = padded(rows, left=True)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=56)
        answer = out[:, ids.shape[1] :]
        stopped = torch.isin(answer, stops_E)
        return int((stopped.cumsum(1) - stopped.long() == 0).sum())

    return work


def teacher(model: Any, batch: int) -> Work:
    rollouts = example_rollouts(8 * batch, model.config.vocab_size)
    turn = 0

    def work() -> int:
        nonlocal turn
        mine = rollouts[turn * batch :][:batch]
        turn = (turn + 1) % 8
        rows = [np.concatenate((rollout.ticket.prompt_ids, rollout.completion.response_ids)) for rollout in mine]
        ids, mask = padded(rows)
        with torch.inference_mode():
            logp = model(ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)[:, :-1]
            chosen = logp.gather(-1, ids[:, 1:, None])[..., 0].numpy()
            top = logp.topk(8, -1)
            top_logp, top_ids = top.values.numpy(), top.indices.numpy()
        for row, rollout in enumerate(mine):
            start, end = len(rollout.ticket.prompt_ids) - 1, len(rows[row]) - 1
            _ = chosen[row, start:end].copy(), top_logp[row, start:end].copy(), top_ids[row, start:end].astype(np.int32)
        return sum(len(row) for row in rows)

    return work


def learner(model: Any, batch: int) -> Work:
    batches = [example_batch(batch, model.config.vocab_size, seed) for seed in range(8)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    turn = 0
    model.train()

    def work() -> int:
        nonlocal turn
        samples = batches[turn]
        turn = (turn + 1) % 8
        loss = _top_8_reverse_kl(model, samples)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return sum(sample.length for sample in samples)

    return work


def _top_8_reverse_kl(model: Any, samples: Sequence[TrainingSample]) -> torch.Tensor:
    ids, mask = padded([np.concatenate((sample.prompt_ids, sample.response_ids)) for sample in samples])
    top_ids = torch.zeros((*ids.shape, 8), dtype=torch.int64)
    top_logq = torch.zeros((*ids.shape, 8))
    trained = torch.zeros(ids.shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        where = slice(len(sample.prompt_ids) - 1, sample.length - 1)
        (target,) = sample.targets
        top_ids[row, where] = torch.from_numpy(target.top_ids_TK).long()
        top_logq[row, where] = torch.from_numpy(target.top_logprobs_TK)
        trained[row, where] = True
    logp = F.log_softmax(model(ids, attention_mask=mask, use_cache=False).logits.float(), -1)
    top_logp = logp.gather(-1, top_ids)[trained]
    return (top_logp.exp() * (top_logp - top_logq[trained])).sum(-1).mean()


def measure(work: Work, batches: int, repetitions: int) -> dict[str, object]:
    """Medians over the repetitions; one warms up."""
    rates = []
    for _ in range(repetitions + 1):
        begin = time.process_time()
        tokens = sum(work() for _ in range(batches))
        rates.append(tokens / (time.process_time() - begin))
    return {"tokens_per_cpu_s": round(statistics.median(rates[1:])), "lowest": round(min(rates[1:])), "highest": round(max(rates[1:]))}


def main() -> None:
    """One stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=sorted(SEQUENCES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batches", type=int, default=8, help="batches of one repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = MODELS / ("teacher" if given.stage == "teacher" else "student")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, given.dtype)).eval()
    work = {"engine": engine, "teacher": teacher, "learner": learner}[given.stage](model, SEQUENCES[given.stage])
    print(json.dumps({"stage": given.stage, "dtype": given.dtype} | measure(work, given.batches, given.repetitions)))


if __name__ == "__main__":
    main()
