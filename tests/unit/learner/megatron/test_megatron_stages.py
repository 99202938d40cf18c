"""Which layers a stage of the pipeline holds."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from learner.megatron.stages import megatron_layout, stages


@pytest.mark.parametrize(("layers", "count"), [(1, 1), (4, 2), (7, 3), (5, 5), (28, 8)])
def test_every_layer_is_in_one_stage_and_sizes_differ_by_one_at_most(layers: int, count: int) -> None:
    found = stages(layers, count)
    assert [layer for stage in found for layer in stage.layers] == list(range(layers))
    assert [stage.first for stage in found] == [True] + [False] * (count - 1)
    assert [stage.last for stage in found] == [False] * (count - 1) + [True]
    sizes = [len(stage.layers) for stage in found]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_megatron_is_told_the_same_division() -> None:
    assert megatron_layout(3, 2) == [["embedding", "decoder", "decoder"], ["decoder", "loss"]]


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 layers are too few for 3 pipeline stages: set learner\.pipeline_parallel to 2 or less"):
        stages(2, 3)
