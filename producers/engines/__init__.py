"""Opens the engine that a run's configuration names."""

from __future__ import annotations

import asyncio

from common.config import RunConfig
from common.pulse import Pulse
from producers.engines.base import Engine


def open_engine(config: RunConfig, pulse: Pulse, loop: asyncio.AbstractEventLoop | None = None) -> Engine:
    """Takes long. Call it on the event loop that will use the engine, or elsewhere and name that loop. It starts from model.student as
    version (0, 0)."""
    match config.producer.kind:
        case "torch":
            from producers.engines.torch.open import open_torch_engine

            return open_torch_engine(config, pulse, loop)
        case "sglang":
            from producers.engines.sglang.opening import open_sglang_engine

            return open_sglang_engine(config)
