"""How fast one worker of each role is: given in a TOML or with --rate, or read from a run (deploy/plan/measured.py).

Guarantee: every rate is above zero and every key is known, or ConfigError says what to write instead. Tokens of the student are answer
tokens; those of teacher and learner are prompt + answer.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # values of a TOML before they are checked

from pydantic import Field, ValidationError

from common.config.load import sentences
from common.config.sections import Positive, Seconds, Section
from common.errors import ConfigError

_EXAMPLE = "--rate student.tokens_per_s=8000"


class StudentRates(Section):
    tokens_per_s: Seconds
    """Answer tokens of one producer (one server, where servers sample) with all its slots taken."""
    alone_tokens_per_s: float | None = Field(None, gt=0)
    """The same with a single answer; empty = a decode step takes as long whatever it holds, as where memory bandwidth decides."""
    at: Positive | None = None
    """Answers in flight at which tokens_per_s holds; empty = as many as the configuration gives to one."""
    beside: float = Field(0.0, ge=0)
    """CPU of the process beside its mathematics, as a share of it. Counts where cores are shared."""


class TeacherRates(Section):
    tokens_per_s: Seconds
    """Tokens of one scorer (one server, where servers score)."""
    call_s: float = Field(0.0, ge=0)
    """What a lease costs beside its tokens."""
    beside: float = Field(0.0, ge=0)
    """As of the student."""


class LearnerRates(Section):
    tokens_per_s: Seconds
    """Tokens of all ranks together."""
    step_s: float = Field(0.0, ge=0)
    """What an optimizer step costs beside its tokens."""
    beside: float = Field(0.0, ge=0)
    """As of the student."""


class Answers(Section):
    mean: float | None = Field(None, gt=0)
    """Mean tokens of an answer; alone it stands for a log-normal distribution …"""
    spread: float = Field(0.6, ge=0)
    """… with this standard deviation, as a share of the mean."""
    percentiles: dict[str, Positive] = Field(default_factory=dict)
    """Tokens by percentile, such as { 50 = 3000, 90 = 9000 }; straight lines between them, up to sampling.max_new_tokens."""
    lengths: tuple[Positive, ...] = ()
    """Or the lengths themselves, as a run had them."""
    prompt_tokens: Positive = 256
    """Mean tokens of a prompt."""


class WeightRates(Section):
    bytes: Positive | None = None
    """Of one published version; empty = counted from model.student and weights.dtype."""
    bytes_per_s: Seconds = 1e9
    """Of the weight store and of a load into a worker, where the times below are empty."""
    export_s: float | None = Field(None, ge=0)
    """The learner's pause for a publication."""
    put_s: float | None = Field(None, ge=0)
    """From the export to the event on the log, beside training."""
    fetch_s: float | None = Field(None, ge=0)
    """From the event to the files at a worker, beside sampling."""
    load_s: float | None = Field(None, ge=0)
    """The worker's pause for the change."""


class Rates(Section):
    """Everything that the simulation must be told beside the run's configuration."""

    student: StudentRates
    teacher: TeacherRates
    learner: LearnerRates
    answers: Answers = Answers()
    weights: WeightRates = WeightRates()
    cores: int = Field(0, ge=0)
    """CPU cores that all roles share; 0 = every worker has a device of its own."""
    bus_s: float = Field(0.001, ge=0)
    """One call to the server and its answer."""
    server_s: float = Field(0.0, ge=0)
    """CPU seconds of the server for one sample. Counts where cores are shared."""


def rates_from(values: Mapping[str, Any], file: Path | None, given: Sequence[str]) -> Rates:
    """`values` (those of a run, or none), over them those of `file`, over them `given` KEY=VALUE."""
    merged = dict(values)
    if file is not None:
        merged = _merged(merged, _read(file))
    for one in given:
        merged = _merged(merged, _parsed(one))
    missing = [role for role in ("student", "teacher", "learner") if "tokens_per_s" not in merged.get(role, {})]
    if missing:
        raise ConfigError(
            f"{missing[0]}.tokens_per_s is not known: give it ({_EXAMPLE}, or --rates FILE), or --from-run a run that has measured it"
        )
    answers = merged.get("answers", {})
    if not any(answers.get(key) for key in ("mean", "percentiles", "lengths")):
        raise ConfigError("how long answers are is not known: give --rate answers.mean=TOKENS, or --from-run a run that has sampled some")
    try:
        return Rates.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(sentences(error, Rates)) from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _over(key, old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def _over(section: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lengths, percentiles and mean are one fact said in three ways: the later one counts."""
    ways = {"mean", "percentiles", "lengths"}
    kept = {key: value for key, value in below.items() if section != "answers" or key not in ways or not ways & above.keys()}
    return kept | dict(above)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file} ({error.strerror}): give a TOML with student, teacher, learner and answers") from None
    except ValueError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None


def _parsed(given: str) -> dict[str, Any]:
    key, equals, text = given.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--rate {given!r} is not KEY=VALUE: write for example {_EXAMPLE}")
    try:
        return tomllib.loads(f"{key.strip()} = {text}")
    except ValueError:
        raise ConfigError(f"--rate {given!r} is not a number: write for example {_EXAMPLE}") from None
