"""A finished run as an offline run of Weights & Biases, made from metrics.jsonl and evaluations.jsonl.

Guarantee: training never waits for that service and needs no account: the files lie in the run's directory, and `wandb sync` sends them.
Where they cannot be written the run ends well all the same, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any  # JSON values

from common.config import RunConfig
from common.errors import ConfigError
from learner.directory import RunDirectory
from learner.metrics import read_evaluations, read_metrics

_log = logging.getLogger(__name__)
_NO_NUMBERS = frozenset({"step", "at"})


def check_wandb(config: RunConfig) -> None:
    """Refuses at the start what would fail at the end."""
    if config.learner.wandb and find_spec("wandb") is None:
        raise ConfigError("learner.wandb is set, but wandb is not installed here: pip install 'reflux[wandb]', or leave it empty")


def write_wandb(config: RunConfig, directory: RunDirectory) -> None:
    """Where learner.wandb names a project."""
    if not config.learner.wandb:
        return
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    names = {"project": config.learner.wandb, "name": config.run.name, "dir": str(directory.root), "mode": "offline"}
    try:
        with wandb.init(**names, config=config.public().model_dump(mode="json"), settings=settings) as run:
            for step, numbers in sorted(_rows(directory).items()):
                run.log(numbers, step=step)
    except (OSError, wandb.Error) as error:
        _log.warning("the run for Weights & Biases could not be written; metrics.jsonl has its numbers", extra={"reason": str(error)})


def _rows(directory: RunDirectory) -> dict[int, dict[str, float]]:
    """By step, for its steps may only rise."""
    rows = {line["step"]: dict(_numbers(line)) for line in read_metrics(directory.metrics)}
    for line in read_evaluations(directory.evaluations):
        rows.setdefault(line["step"], {})["pass_at_1"] = line["pass_at_1"]
    return rows


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", number) for key, number in value.items())
        elif isinstance(value, int | float) and name not in _NO_NUMBERS:
            yield name, value
