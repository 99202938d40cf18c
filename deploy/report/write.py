"""From a run's directory to the page. Works on a run that goes on as well as on a finished one; needs neither Redis nor a network.

Text of prompts and answers is data: it is embedded as JSON and shown as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any  # JSON values

from common.config import RunConfig
from common.errors import ConfigError
from deploy.report.rollouts import Selection, choose, describe
from learner.directory import RunDirectory
from learner.surviving import surviving_records

_PLACE = "/*DATA*/"
_SELECTION = Selection()


def write_report(config: RunConfig, out: Path, selection: Selection = _SELECTION) -> int:
    """Writes `out`; returns how many rollouts it shows. ConfigError where the run has recorded nothing yet."""
    from transformers import AutoTokenizer

    directory = RunDirectory(config.directory)
    steps = _last_lines(directory.metrics)
    if not steps:
        raise ConfigError(f"{directory.root} has recorded no step yet: start it with `reflux run`, or name another run")
    tokenizer = AutoTokenizer.from_pretrained(config.model.student, local_files_only=True, trust_remote_code=False)
    chosen = choose(surviving_records(directory), max(steps), selection)
    rollouts = [describe(record, scored, tokenizer) for record, scored in chosen]
    page = resources.files("deploy.report").joinpath("page.html").read_text(encoding="utf-8")
    data = {**_summary(config, directory), **_series(steps, _last_lines(directory.evaluations)), "rollouts": rollouts}
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(page.replace(_PLACE, _embedded(data)), encoding="utf-8")
    temporary.replace(out)
    return len(rollouts)


def _summary(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    result = directory.finished() or {}
    kept = ("pass_at_1", "samples", "tokens", "wall_s", "steps", "mixed_version_share", "ledger", "retried")
    return {
        "run": config.run.name,
        "loss": config.loss.kind,
        "bound": config.learner.max_staleness,
        "total_steps": config.learner.steps,
        "result": {key: result[key] for key in kept if key in result},
    }


def _series(steps: Mapping[int, Mapping[str, Any]], evaluations: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the charts draw: [step, value] pairs, and tokens by staleness."""
    staleness: dict[int, int] = {}
    for line in steps.values():
        for lag, tokens in line.get("staleness", {}).items():
            staleness[int(lag)] = staleness.get(int(lag), 0) + tokens
    return {
        "kl": [[step, line["kl"]] for step, line in steps.items() if "kl" in line],
        "rate": [[step, line["samples"] / line["wall_s"]] for step, line in steps.items() if line.get("wall_s")],
        "accuracy": [[step, line["pass_at_1"]] for step, line in evaluations.items()],
        "staleness": sorted(staleness.items()),
    }


def _last_lines(file: Path) -> dict[int, dict[str, Any]]:
    """By step, in order; of several lines of a step the last counts, and a line that a crash cut off does not."""
    lines: dict[int, dict[str, Any]] = {}
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "samples" in line or "n" in line:
            lines[line["step"]] = lines.get(line["step"], {}) | line
    return dict(sorted(lines.items()))


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")
