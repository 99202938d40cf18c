"""When a producer says that it waits for tickets."""

import asyncio
from dataclasses import replace

from test_producer_service import FIRST, Stage

from common.bus.base import rollouts


async def test_a_producer_that_runs_dry_in_the_middle_of_a_lease_waits_for_tickets() -> None:
    stage = Stage(slots=8)
    config = stage.worker.config
    patient = config.model_copy(update={"service": config.service.model_copy(update={"heartbeat_s": 1.0})})  # one lease lasts so long
    stage.worker = replace(stage.worker, config=patient)
    stage.engine.gate.clear()
    await stage.publish(FIRST)
    await stage.admit(6)
    async with stage.running():
        while len(stage.engine.running) < 6:
            await asyncio.sleep(0.01)
        assert stage.worker.pulse.report().state != "waits for tickets"
        stage.engine.gate.set()
        await stage.until(rollouts("t"), 6)
        assert stage.worker.pulse.report().state == "waits for tickets"
