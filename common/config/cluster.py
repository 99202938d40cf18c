"""What a run asks of a Ray cluster, and how many scorers it may have there."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from common.config.sections import Seconds, Section, operational


class ServerGroup(Section):
    """Servers that `reflux up --ray` starts for a teacher, or for the student."""

    command: str = operational(..., min_length=1)
    """What starts one; `{host}` and `{port}` are filled in, `{python}` is the interpreter that runs Reflux."""
    count: int = operational(1, ge=1)
    """How many."""
    cpus: float = operational(1.0, ge=0)
    """CPUs of each."""
    gpus: float = operational(1.0, ge=0)
    """GPUs of each."""


class ClusterSection(Section):
    """What `reflux up --ray` reserves; fractions share a device."""

    learner_cpus: float = operational(1.0, ge=0)
    """CPUs of each rank."""
    learner_gpus: float = operational(0.0, ge=0)
    """GPUs of each rank."""
    producer_cpus: float = operational(1.0, ge=0)
    """CPUs of a producer."""
    producer_gpus: float = operational(0.0, ge=0)
    """GPUs of a producer."""
    scorer_cpus: float = operational(1.0, ge=0)
    """CPUs of a scorer."""
    scorer_gpus: float = operational(0.0, ge=0)
    """GPUs of a scorer."""
    scorers_min: int = operational(1, ge=1)
    """Fewest scorers per teacher, where scorers_max is set."""
    scorers_max: int = operational(0, ge=0)
    """Most scorers per teacher: as many as the backlog asks for and the learner can take. 0 = always scorer.count."""
    scale_age_s: Seconds = operational(5.0)
    """Scorers are added when rollouts wait for longer than this while the learner is idle."""
    scale_cool_down_s: Seconds = operational(30.0)
    """Between two changes of their number; after four of these without waiting rollouts there is one less."""
    servers: dict[str, ServerGroup] = operational({})
    """By name of the teacher, or `student`: SGLang servers that are started with the run; their addresses become its urls."""
    patience_s: float = operational(60.0, ge=0)
    """How long `reflux up` waits for nodes with the resources that the roles ask for."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if 0 < self.scorers_max < self.scorers_min:
            raise ValueError(f"cluster.scorers_max = {self.scorers_max} is less than cluster.scorers_min = {self.scorers_min}")
        return self
