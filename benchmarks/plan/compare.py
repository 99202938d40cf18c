"""One finished run beside its plan: throughput, learner's busy share and staleness of both, over the steps that the plan counts."""

from collections.abc import Mapping
from typing import Any  # JSON values

from common.config import RunConfig
from deploy.plan.rates import rates_from
from deploy.plan.show import mean_staleness
from deploy.plan.simulate import setting_of, simulate
from deploy.plan.sizes import version_bytes
from learner.directory import RunDirectory
from learner.metrics import read_metrics


def compared(name: str, config: RunConfig, rates: Mapping[str, Any]) -> dict[str, Any]:
    """A row; `rates` as a file of them would have them."""
    setting = setting_of(config, rates_from(rates, None, ()), version_bytes(config), seed=1)
    outcome, warm_up = simulate(setting, setting.now), setting.warm_up
    lines = read_metrics(RunDirectory(config.directory).metrics)
    counted, elapsed = lines[warm_up:], lines[-1]["at"] - lines[warm_up - 1]["at"]
    real = sum(line["samples"] for line in counted) / elapsed
    trained: dict[int, int] = {}
    for line in counted:
        for lag, tokens in line["staleness"].items():
            trained[int(lag)] = trained.get(int(lag), 0) + tokens
    return {
        "run": name,
        "producers": outcome.layout.producers,
        "scorers": outcome.layout.scorers,
        "planned": round(outcome.samples_per_s, 2),
        "real": round(real, 2),
        "error": round(outcome.samples_per_s / real - 1, 4),
        "staleness_planned": round(mean_staleness(outcome), 2),
        "staleness_real": round(sum(lag * tokens for lag, tokens in trained.items()) / max(1, sum(trained.values())), 2),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| run | producers | scorers | samples/s: planned | real | error | mean staleness: planned | real |"]
    lines.append("| --- | " + " | ".join(["---:"] * 7) + " |")
    for row in rows:
        cells = (row["run"], row["producers"], row["scorers"], f"{row['planned']:.1f}", f"{row['real']:.1f}", f"{row['error']:+.1%}")
        lines.append(f"| {' | '.join(map(str, (*cells, row['staleness_planned'], row['staleness_real'])))} |")
    return "\n".join(lines)
