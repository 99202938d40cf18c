"""The fair baseline: the same student trained further on its own examples, for as much CPU as distillation was given.

Prints one JSON line with the held-out pass@1 at temperature 1. Evaluation is not counted in the CPU time.
"""

import argparse
import json
import time
from pathlib import Path
from random import Random

import torch
from language_model import (
    encode_batch,
    load,
    load_tokenizer,
    pass_at_1,
    run_alone_on_one_thread,
    shuffled_batches,
    train_step,
)
from task import HERE, read_jsonl

BATCH = 64
BEST_LR = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu-seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=BEST_LR, help="the better of 3e-4 and 1e-3 by default")
    parser.add_argument("--student", type=Path, default=HERE / "models" / "student")
    arguments = parser.parse_args()
    run_alone_on_one_thread()
    model, tokenizer = load(arguments.student), load_tokenizer(arguments.student)
    examples = [(row["prompt"], row["response"]) for row in read_jsonl(HERE / "sft.jsonl")]
    batches = shuffled_batches(Random(arguments.seed), encode_batch(tokenizer, examples), BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    model.train()
    started = time.process_time()
    while time.process_time() - started < arguments.cpu_seconds:
        train_step([optimizer], model, next(batches))
    spent = time.process_time() - started
    held_out = read_jsonl(HERE / "heldout.jsonl")
    right = pass_at_1(model, tokenizer, held_out, seed=arguments.seed)
    result = {"cpu_s": round(spent, 2), "pass_at_1": round(right, 4), "n": len(held_out)}
    print(json.dumps({**result, "seed": arguments.seed, "lr": arguments.lr}))


if __name__ == "__main__":
    main()
