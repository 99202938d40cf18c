"""Which layers a rank of the pipeline holds, and which experts of them.

Guarantees: pure; the stages hold every layer once, in order, none of them empty; where the layers do not divide evenly the first stages
hold one more each, because the last one has the output layer beside them. Expert-parallel ranks hold every expert once, as many each.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage; `layers` are numbers in the whole model. The first stage has the embedding, the last one the output layer."""

    layers: range
    first: bool = True
    last: bool = True
    experts: range | None = None
    """Numbers of the experts that are here, each of them whole, of every layer that has any; None: all, divided as the layers are."""


def stages(layers: int, count: int) -> tuple[Stage, ...]:
    """ConfigError where a stage would be empty."""
    if count > layers:
        raise ConfigError(f"{layers} layers are too few for {count} pipeline stages: set learner.pipeline_parallel to {layers} or less")
    starts = [index * (layers // count) + min(index, layers % count) for index in range(count + 1)]
    return tuple(Stage(range(starts[i], starts[i + 1]), first=i == 0, last=i == count - 1) for i in range(count))


def experts_of(count: int, rank: int, size: int) -> range:
    """The experts of expert-parallel `rank` of `size`; ConfigError where they cannot be divided."""
    if count % size:
        raise ConfigError(f"{count} experts cannot be divided over {size} ranks: set learner.expert_parallel to a divisor of {count}")
    return range(rank * count // size, (rank + 1) * count // size)


def megatron_layout(layers: int, count: int) -> list[list[str]]:
    """The same division as Megatron's `pipeline_model_parallel_layout`."""
    return [["embedding"] * stage.first + ["decoder"] * len(stage.layers) + ["loss"] * stage.last for stage in stages(layers, count)]
