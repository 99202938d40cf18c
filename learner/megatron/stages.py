"""Which layers a rank of the pipeline holds.

Guarantees: pure; the stages hold every layer once, in order, none of them empty; where the layers do not divide evenly the first stages
hold one more each, because the last one has the output layer beside them.
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


def stages(layers: int, count: int) -> tuple[Stage, ...]:
    """ConfigError where a stage would be empty."""
    if count > layers:
        raise ConfigError(f"{layers} layers are too few for {count} pipeline stages: set learner.pipeline_parallel to {layers} or less")
    starts = [index * (layers // count) + min(index, layers % count) for index in range(count + 1)]
    return tuple(Stage(range(starts[i], starts[i + 1]), first=i == 0, last=i == count - 1) for i in range(count))


def megatron_layout(layers: int, count: int) -> list[list[str]]:
    """The same division as Megatron's `pipeline_model_parallel_layout`."""
    return [["embedding"] * stage.first + ["decoder"] * len(stage.layers) + ["loss"] * stage.last for stage in stages(layers, count)]
