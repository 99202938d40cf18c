"""`reflux plan`: rates from a run or as given, the search, and the answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from common.config import RunConfig
from deploy.plan.choose import Plan, choose
from deploy.plan.measured import measured
from deploy.plan.rates import rates_from
from deploy.plan.show import show, to_json
from deploy.plan.simulate import setting_of
from deploy.plan.sizes import version_bytes
from deploy.target import open_target
from learner.directory import RunDirectory

_UNWRAPPED = 200
"""Columns in a pipe."""


def plan(config: RunConfig, *, from_run: Path | None, rates: Path | None, given: Sequence[str], seed: int, as_json: bool) -> int:
    """The exit code."""
    made = make_plan(config, from_run=from_run, rates=rates, given=given, seed=seed)
    if as_json:
        print(to_json(made))
    else:
        show(Console(width=None if sys.stdout.isatty() else _UNWRAPPED), config, made)
    return 0


def make_plan(
    config: RunConfig, *, from_run: Path | None = None, rates: Path | None = None, given: Sequence[str] = (), seed: int = 1
) -> Plan:
    """Rates given go over those of a file, and these over those of a run: `from_run`, or else the configuration's own where it is finished
    and no file is given. Raises ConfigError."""
    source = config if from_run is None else open_target(from_run)
    own = from_run is not None or (rates is None and RunDirectory(config.directory).result.exists())
    known = rates_from(measured(source) if own else {}, rates, given)
    return choose(setting_of(config, known, known.weights.bytes or version_bytes(config), seed))
