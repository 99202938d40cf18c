"""pass@1 after 3,200 samples at a forced lag, for two losses: `make bench-staleness`.

Every cell is a real run (separate processes, embedded server) of the example. The lag is forced by a window of S batches and a
learner paced so that the other stages always catch up; the consumed lag that the run recorded is printed beside it. Writes
docs/staleness.json and docs/staleness.png.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "examples/arithmetic/run.toml"
LOSSES = ("topk_reverse_kl", "sampled_reverse_kl")


def one_run(loss: str, lag: int, seed: int, lr: float) -> dict[str, float]:
    """Runs the example and returns its pass@1 and mean consumed lag."""
    name = f"staleness-{loss}-{lag}-{seed}"
    settings = {
        "run.name": f'"{name}"',
        "run.seed": seed,
        "learner.steps": 50,
        "learner.max_staleness": lag,
        "learner.straggler": '"wait"' if lag else '"mask"',
        "loss.kind": f'"python:benchmarks.paced_losses:{loss}"',
        "optimizer.lr": lr,
        "optimizer.schedule": '"constant"',
        "evaluation.every": 0,
    }
    command = [sys.executable, "-m", "deploy", "run", str(CONFIG), "--fresh"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    result = json.loads((ROOT / "runs" / name / "result.json").read_text())
    histogram = {int(lag_seen): count for lag_seen, count in result["staleness"]["histogram"].items()}
    mean = sum(lag_seen * count for lag_seen, count in histogram.items()) / max(1, sum(histogram.values()))
    return {"pass_at_1": result["pass_at_1"]["after"], "before": result["pass_at_1"]["before"], "lag": mean, "lag_max": max(histogram)}


def plot(cells: list[dict[str, object]], file: Path) -> None:
    """One line per loss, the seeds as dots."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6))
    for loss in LOSSES:
        mine = [cell for cell in cells if cell["loss"] == loss]
        axes.plot([str(cell["lag"]) for cell in mine], [cell["median"] for cell in mine], marker="o", label=loss)
        for cell in mine:
            axes.scatter([str(cell["lag"])] * len(cell["pass_at_1"]), cell["pass_at_1"], s=10, alpha=0.5, color="grey")
    axes.set(xlabel="forced lag (steps)", ylabel="pass@1 after 3,200 samples", ylim=(0, 1))
    axes.legend(loc="center left")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Runs the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lr", type=float, default=5e-4)
    given = parser.parse_args()
    cells: list[dict[str, object]] = []
    for loss in LOSSES:
        for lag in given.lags:
            runs = [one_run(loss, lag, seed, given.lr) for seed in given.seeds]
            scores = [run["pass_at_1"] for run in runs]
            seen = statistics.mean(run["lag"] for run in runs)
            cells.append({"loss": loss, "lag": lag, "seen": seen, "pass_at_1": scores, "median": statistics.median(scores)})
            print(f"{loss:20} lag {lag:2}  consumed {seen:5.2f}  pass@1 {' '.join(f'{score:.3f}' for score in scores)}", flush=True)
    (ROOT / "docs/staleness.json").write_text(json.dumps(cells, indent=1) + "\n")
    plot(cells, ROOT / "docs/staleness.png")


if __name__ == "__main__":
    main()
