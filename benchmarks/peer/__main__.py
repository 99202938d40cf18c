"""Reflux beside TRL's DistillationTrainer: `make bench-peer`.

The same models, prompts, batch, optimizer, sample count and allocator settings, in turn, several rounds, so that a noisy machine
treats both alike. TRL runs in an environment of its own (.bench-peer), at the thread count and micro-batch that a short search found
best. Start-up is excluded on both sides: the clock runs from the end of the first steps to the end of the last. Both models are then
judged by the same sampler.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/arithmetic"
PEER = ROOT / ".bench-peer"
PEER_PACKAGES = ("torch==2.13.0", "trl==1.16.*", "transformers==5.23.0")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "TOKENIZERS_PARALLELISM": "false"}
WARM = 3  # steps before the clock starts

Figures = dict[str, float]


def set_up() -> None:
    """Makes TRL's environment once."""
    python = PEER / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
    if subprocess.run([str(python), "-c", "import trl"], check=False, capture_output=True).returncode:
        for package in PEER_PACKAGES:
            subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)


def trl(given: argparse.Namespace, *, steps: int, threads: int, micro_batch: int, seed: int, out: Path) -> Figures:
    """One training run of TRL."""
    command = [str(PEER / "bin/python"), str(ROOT / "benchmarks/peer/trl_side.py")]
    values = {"student": EXAMPLE / "models/student", "teacher": EXAMPLE / "models/teacher", "prompts": EXAMPLE / "train.jsonl", "out": out}
    values |= {"steps": steps, "threads": threads, "micro-batch": micro_batch, "seed": seed, "lr": given.lr, "warm": WARM}
    for name, value in values.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(finished.stdout.strip().splitlines()[-1])


def search(given: argparse.Namespace) -> tuple[int, int]:
    """TRL's best thread count and micro-batch, on short runs."""
    rates = {}
    for threads in (1, 2):
        for micro_batch in (32, 64):
            figures = trl(given, steps=15, threads=threads, micro_batch=micro_batch, seed=0, out=PEER / "search")
            rates[threads, micro_batch] = figures["samples"] / figures["wall_s"]
            print(f"TRL search: {threads} threads, micro-batch {micro_batch}: {rates[threads, micro_batch]:.0f} samples/s", flush=True)
    return max(rates, key=rates.__getitem__)


def reflux(given: argparse.Namespace, *, steps: int, seed: int) -> Figures:
    """One run of Reflux; wall and CPU from the metrics' step lines and the processes of the run."""
    name = f"peer-{seed}"
    command = [sys.executable, "-m", "deploy", "run", str(EXAMPLE / "run.toml"), "--fresh"]
    for setting in (
        f'run.name="{name}"',
        f"run.seed={seed}",
        f"learner.steps={steps}",
        f"optimizer.lr={given.lr}",
        'optimizer.schedule="constant"',
        "optimizer.warmup_steps=0",
        "evaluation.prompts=0",
        *given.set,
    ):
        command += ["--set", setting]
    metrics = ROOT / "runs" / name / "metrics.jsonl"
    started = time.time()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, **ALLOCATOR}) as process:
        begun = ended = (0.0, 0.0, 0)
        while process.poll() is None:
            time.sleep(0.05)
            step = last_step(metrics, started)
            if step < WARM:
                continue
            now = (time.perf_counter(), cpu_seconds(process.pid), step)
            begun = begun if begun[2] else now
            if step > ended[2]:
                ended = now
    assert process.returncode == 0, f"reflux run ended with {process.returncode}"
    return {"samples": (ended[2] - begun[2]) * 64, "wall_s": ended[0] - begun[0], "cpu_s": ended[1] - begun[1]}


def last_step(metrics: Path, started: float) -> int:
    """The last step that the learner recorded."""
    try:
        if metrics.stat().st_mtime < started:
            return 0
        lines = metrics.read_text().splitlines()
    except FileNotFoundError:
        return 0
    steps = [line["step"] for line in map(_parsed, lines[-5:]) if "loss" in line]
    return max(steps, default=0)


def _parsed(line: str) -> dict[str, int]:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # half-written
        return {}


def cpu_seconds(pid: int) -> float:
    """CPU seconds of the supervisor and everything it started, the server included."""
    total = 0.0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def pass_at_1(model: Path) -> float:
    """Both sides are judged by the same sampler."""
    command = [sys.executable, str(EXAMPLE / "evaluate.py"), "--model", str(model), "--prompts", str(EXAMPLE / "heldout.jsonl")]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(finished.stdout.strip().splitlines()[-1])["pass_at_1"])


def main() -> None:
    """Search, rounds, medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--set", action="append", default=[], help="passed on to `reflux run`")
    given = parser.parse_args()
    set_up()
    threads, micro_batch = search(given)
    rows: dict[str, list[Figures]] = {"TRL": [], "Reflux": []}
    for seed in range(1, given.rounds + 1):
        peer = trl(given, steps=given.steps, threads=threads, micro_batch=micro_batch, seed=seed, out=PEER / f"run-{seed}")
        peer["pass_at_1"] = pass_at_1(PEER / f"run-{seed}/model")
        ours = reflux(given, steps=given.steps, seed=seed)
        ours["pass_at_1"] = pass_at_1(ROOT / f"runs/peer-{seed}/model")
        for side, figures in (("TRL", peer), ("Reflux", ours)):
            rows[side].append(figures)
            rate, cost = figures["samples"] / figures["wall_s"], 1000 * figures["cpu_s"] / figures["samples"]
            print(f"round {seed} {side:6}: {rate:6.0f} samples/s  {cost:5.2f} CPU-s/1000  pass@1 {figures['pass_at_1']:.3f}", flush=True)
    ratios = [
        (ours["samples"] / ours["wall_s"]) / (peer["samples"] / peer["wall_s"])
        for ours, peer in zip(rows["Reflux"], rows["TRL"], strict=True)
    ]
    summary = {
        "trl": {"threads": threads, "micro_batch": micro_batch},
        "speed_ratio": {"median": statistics.median(ratios), "all": ratios},
        **{side: medians(figures) for side, figures in rows.items()},
    }
    print(json.dumps(summary, indent=1))


def medians(rows: list[Figures]) -> Figures:
    """Medians over the rounds."""
    return {
        "samples_per_s": statistics.median(row["samples"] / row["wall_s"] for row in rows),
        "cpu_s_per_1000": statistics.median(1000 * row["cpu_s"] / row["samples"] for row in rows),
        "pass_at_1": statistics.median(row["pass_at_1"] for row in rows),
    }


if __name__ == "__main__":
    main()
