"""The machine's part in a rate: tokens per CPU-second if a stage were its model's linear layers and nothing else, JSON.

Every `nn.Linear` of the body runs by itself on as many rows as the stage gives it; a training step counts as three forward passes (the
backward pass has two products for each of the forward's). A floor measured on another machine says little here without this ceiling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

MODELS = Path(__file__).resolve().parent.parent / "examples/arithmetic/models"
STAGES = {"engine": ("student", 128, 1), "teacher": ("teacher", 4096, 1), "learner": ("student", 2048, 3)}  # model, rows, passes
_REPEATS, _CPU_S = 5, 0.1  # per layer: medians of so many stretches of so long


@torch.inference_mode()
def seconds_per_token(linear: nn.Linear, rows: int) -> float:
    """CPU seconds of one layer for one row."""
    inputs = torch.randn(rows, linear.in_features, dtype=linear.weight.dtype)
    linear(inputs)
    stretches = []
    for _ in range(_REPEATS):
        begin, calls = time.process_time(), 0
        while time.process_time() - begin < _CPU_S:
            linear(inputs)
            calls += 1
        stretches.append((time.process_time() - begin) / calls)
    return statistics.median(stretches) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    directory, rows, passes = STAGES[arguments.stage]
    model = AutoModelForCausalLM.from_pretrained(MODELS / directory, dtype=getattr(torch, arguments.dtype))
    layers = [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]
    spent = passes * sum(seconds_per_token(layer, rows) for layer in layers)
    print(json.dumps({"tokens_per_cpu_s": round(1 / spent)}))


if __name__ == "__main__":
    main()
