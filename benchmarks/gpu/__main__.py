"""`make bench-gpu`: learner step, torch teacher and torch engine on one accelerator; JSON and a table.

Each stage is a process of its own, so that peak memory is the stage's alone. MFU is the rate over the device's dense bfloat16 peak from
its data sheet; a device that is not in the list needs --peak-tflops. Without an accelerator it refuses, unless --cpu asks for a look at
the benchmark itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any  # JSON values

import torch

from benchmarks.gpu.shapes import SHAPES, draw_samples, write_model
from benchmarks.gpu.stages import STAGES, Work
from benchmarks.page import table

_PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "B200": 2250.0}
"""Dense bfloat16, from NVIDIA's data sheets (SXM)."""

_SIZES = ("samples", "prompt", "response", "rounds", "budget", "slots")


def main() -> None:
    arguments = _arguments()
    if not torch.cuda.is_available() and not arguments.cpu:
        sys.exit("no CUDA device is visible: start it on a machine with one (or see the benchmark itself work with --cpu --shape tiny)")
    if arguments.only:
        print(json.dumps(_measure(arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="reflux-bench-gpu-") as scratch:
        found = [_apart(arguments, shape, stage, scratch) for shape in arguments.shape for stage in STAGES]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": device, "torch": torch.__version__, "results": found}, indent=1) + "\n")
    print(f"{device}, torch {torch.__version__}, bfloat16\n\n{_table(found)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["1.7b", "4b"])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256, help="tokens, on average")
    parser.add_argument("--response", type=int, default=768, help="tokens, on average")
    parser.add_argument("--rounds", type=int, default=5, help="timed ones; the median counts")
    parser.add_argument("--budget", type=int, default=16_384, help="tokens of a micro-batch and of a scoring batch")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--recompute", action="store_true", help="recompute activations in the learner's backward pass")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of the device")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--cpu", action="store_true", help="run without an accelerator")
    parser.add_argument("--only", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _apart(arguments: argparse.Namespace, shape: str, stage: str, scratch: str) -> dict[str, Any]:
    directory = Path(scratch) / shape
    if not directory.is_dir():
        write_model(SHAPES[shape], directory, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        torch.cuda.empty_cache()
    passed = [f"--{name}={getattr(arguments, name)}" for name in _SIZES]
    passed += [f"--{name}" for name in ("recompute", "cpu") if getattr(arguments, name)]
    passed += [f"--peak-tflops={arguments.peak_tflops}"] if arguments.peak_tflops else []
    command = [sys.executable, "-m", "benchmarks.gpu", "--shape", shape, "--only", stage, "--model", str(directory), *passed]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"shape": shape, "stage": stage, "failed": f"exit code {done.returncode}, see above"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result), flush=True)
    return result


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    name = arguments.shape[0]
    shape = SHAPES[name]
    samples = draw_samples(arguments.samples, shape.vocabulary, arguments.prompt, arguments.response)
    work = Work(arguments.model, shape, samples, arguments.rounds, arguments.budget, arguments.slots, arguments.recompute)
    rate = STAGES[arguments.only](work)
    peak = _peak_flops(arguments.peak_tflops)
    return {
        "shape": name,
        "stage": arguments.only,
        "tokens_per_s": round(rate.tokens_per_s),
        "tflops": round(rate.flops_per_s / 1e12, 3),
        "mfu": round(rate.flops_per_s / peak, 4) if peak else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
    }


def _peak_flops(given: float | None) -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    tflops = given or next((value for known, value in _PEAK_TFLOPS.items() if known in name), None)
    return tflops * 1e12 if tflops else None


def _table(found: list[dict[str, Any]]) -> str:
    head = ("model", "stage", "tokens/s", "TFLOP/s", "MFU", "peak GiB")
    figures = ("tokens_per_s", "tflops", "mfu", "peak_gib")
    rows = [[row["shape"], row["stage"], *(str(row.get(figure, "failed")) for figure in figures)] for row in found]
    return table(head, rows)


if __name__ == "__main__":
    main()
