"""From the configuration to an engine on servers. No connection is made before the first ticket."""

from __future__ import annotations

from common.config import RunConfig
from common.errors import ConfigError, WeightsError
from common.sglang.keys import read_keys
from common.sglang.pool import ServerPool, limits_of
from common.sglang.shape import read_shape
from producers.engines.sglang.engine import SglangEngine
from producers.engines.sglang.layout import layout_of
from producers.engines.sglang.target import first_target
from producers.engines.sglang.weights import PoolWeights


def open_sglang_engine(config: RunConfig) -> SglangEngine:
    """Raises ConfigError."""
    section, student = config.producer, config.model.student.resolve()
    shape = read_shape(student)
    try:
        layout = layout_of(student)
    except WeightsError as error:
        raise ConfigError(f"model.student: {error}: servers are given these weights at the start") from None
    weights = PoolWeights(first=first_target(student), deadline_s=section.deadline_s)
    pool = ServerPool(
        who="the student",
        urls=section.urls,
        keys=read_keys(section, "producer"),
        limits=limits_of(section),
        shape=shape,
        prepare=weights.prepare,
    )
    return SglangEngine(pool=pool, weights=weights, shape=shape, layout=layout, slots=section.slots)
