"""What it costs in exactness to keep old keys and values when weights change in mid-answer (docs/adr/0001), as JSON.

The example student is distilled while it samples: after every `batch` finished answers one optimizer step (full-vocabulary reverse KL to
the teacher) changes the weights under the answers in flight. Then every token's behaviour log-probability is compared with a full
recomputation under the version its span names. Beside it, for scale: how far one optimizer step itself moves the same tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.messages import Completion, Sampling, Ticket, Version
from producers.engines.torch.batch import Batch
from producers.engines.torch.fused import FusedForward
from producers.engines.torch.loader import load_student
from producers.engines.torch.request import Request

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/arithmetic"
Sample = tuple[Request, Completion]


def requests_of(directory: Path, stops: tuple[int, ...]) -> Iterator[Request]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    loop = asyncio.new_event_loop()
    for seq, line in enumerate((EXAMPLE / "train.jsonl").read_text().splitlines()):
        prompt = np.array(tokenizer(json.loads(line)["prompt"])["input_ids"], np.int32)
        ticket = Ticket(seq, 0, str(seq), prompt, Sampling(1.0, 56, ()), (), Version(0, 0))
        yield Request(ticket, stops, loop.create_future())
    loop.close()


def padded(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """ids [B, T] and the mask [B, T-1] of predicted response tokens."""
    rows = [torch.from_numpy(np.concatenate([r.ticket.prompt_ids, c.response_ids])).long() for r, c in samples]
    ids_bt = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    place_t = torch.arange(1, ids_bt.shape[1])
    first = torch.tensor([[r.prompt_tokens] for r, _ in samples])
    end = torch.tensor([[len(row)] for row in rows])
    return ids_bt, (place_t >= first) & (place_t < end)


def train_step(learner: torch.nn.Module, teacher: torch.nn.Module, optimizer: torch.optim.Optimizer, samples: list[Sample]) -> None:
    ids, mask = padded(samples)
    logp = torch.log_softmax(learner(input_ids=ids).logits[:, :-1], -1)
    with torch.no_grad():
        target = torch.log_softmax(teacher(input_ids=ids).logits[:, :-1], -1)
    loss = (logp.exp() * (logp - target)).sum(-1)[mask].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.inference_mode()
def response_logps(model: torch.nn.Module, samples: list[Sample]) -> list[Tensor]:
    out = []
    for start in range(0, len(samples), 256):
        part = samples[start : start + 256]
        ids, mask = padded(part)
        logp = torch.log_softmax(model(input_ids=ids).logits[:, :-1], -1).gather(2, ids[:, 1:, None])[:, :, 0]
        out += [row[kept] for row, kept in zip(logp, mask, strict=True)]
    return out


def stream(student_path: Path, teacher_path: Path, *, steps: int, batch: int, lr: float) -> tuple[list[Sample], list[dict[str, Tensor]]]:
    """Samples and the weights of all versions."""
    student = load_student(student_path, dtype=torch.float32, device=torch.device("cpu"))
    learner = AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    slots = Batch(FusedForward(student, slots=128), slots=128, seed=1, device=student.device)
    queue = requests_of(student_path, student.stops)
    versions = [{name: value.clone() for name, value in learner.state_dict().items()}]
    done: list[Sample] = []
    fresh: list[Sample] = []
    while len(versions) <= steps:
        with torch.inference_mode():
            if slots.free >= 13:
                fresh += slots.join([next(queue) for _ in range(slots.free)], Version(1, len(versions) - 1))
            fresh += slots.step()
        if len(fresh) < batch:
            continue
        used, fresh = fresh[:batch], fresh[batch:]
        done += used
        train_step(learner, teacher, optimizer, used)
        versions.append({name: value.clone() for name, value in learner.state_dict().items()})
        with torch.inference_mode():
            for name, parameter in student.model.named_parameters():
                parameter.copy_(versions[-1][name])
        slots.swapped(Version(1, len(versions) - 1))
    return done, versions


def compare(samples: list[Sample], versions: list[dict[str, Tensor]], path: Path) -> dict[str, object]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ratios: dict[str, list[Tensor]] = {"own_keys": [], "old_keys": [], "previous_version": []}
    for step, weights in enumerate(versions):
        mixed = [sample for sample in samples if any(span.step == step for span in sample[1].versions)]
        if not mixed:
            continue
        model.load_state_dict(versions[max(0, step - 1)])
        before = response_logps(model, mixed)
        model.load_state_dict(weights)
        for (_, completion), old, now in zip(mixed, before, response_logps(model, mixed), strict=True):
            begin = 0
            for index, span in enumerate(completion.versions):
                piece = slice(begin, begin + span.tokens)
                begin += span.tokens
                if span.step == step:
                    behaviour = torch.from_numpy(completion.logprobs[piece])
                    ratios["old_keys" if index else "own_keys"].append(now[piece] - behaviour)
                    if index:
                        ratios["previous_version"].append(old[piece] - behaviour)
    return {name: figures(torch.cat(pieces)) for name, pieces in ratios.items()} | {
        "mixed_share": round(sum(len(c.versions) > 1 for _, c in samples) / len(samples), 3)
    }


def figures(log_ratio: Tensor) -> dict[str, float]:
    """log_ratio = recomputed − sampled; the sampler's KL from the recomputed distribution is the mean of its negative."""
    outside = (log_ratio < math.log(0.5)) | (log_ratio > math.log(5.0))
    return {
        "tokens": len(log_ratio),
        "kl": float(-log_ratio.double().mean()),
        "mean_abs_log_ratio": float(log_ratio.abs().mean()),
        "max_abs_log_ratio": float(log_ratio.abs().max()),
        "share_outside_icepop": float(outside.float().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    student, teacher = EXAMPLE / "models/student", EXAMPLE / "models/teacher"
    samples, versions = stream(student, teacher, steps=arguments.steps, batch=arguments.batch, lr=arguments.lr)
    print(json.dumps(compare(samples, versions, student), indent=1))


if __name__ == "__main__":
    main()
