"""The SGLang stand-in with the service times of a device: what it computes for real takes little, the rest of the time it sleeps.

A decode step of n answers takes `fixed + each · n` seconds, a scored token `1 / rate`. What was late is made up for, so that a busy machine
changes the moments, not the rate. `python -m benchmarks.plan.timed --model DIR --fixed S --each S --rate N` prints its address.
"""

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any  # the batch that is wrapped, and what it passes on

from deploy.sglang_standin.model import StandInModel, open_model
from deploy.sglang_standin.service import Service
from deploy.sglang_standin.web import listening

_SLOTS = 256


class Clock:
    """Ends each piece of work when it is due. Work that begins within `patience` after the last one's end follows it without a gap."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.due = 0.0

    def until(self, begun: float, seconds: float) -> None:
        """Sleeps to the end of work of `seconds` that began at `begun`."""
        self.due = (self.due if begun - self.due < self._patience else begun) + seconds
        time.sleep(max(0.0, self.due - time.monotonic()))


class TimedBatch:
    """The batch, at its own pace; prefills and the pause for new weights are made up for by the steps that follow."""

    def __init__(self, batch: Any, fixed: float, each: float) -> None:
        self._batch, self._fixed, self._each = batch, fixed, each
        self._clock = Clock(patience=2.0)
        self._was_busy = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def step(self) -> Any:
        """A decode step."""
        begun, active = time.monotonic(), self._batch.active
        finished = self._batch.step()
        if not self._was_busy:
            self._clock.due = begun
        self._clock.until(begun, self._fixed + self._each * active)
        self._was_busy = self._batch.active > 0
        return finished


class TimedModel:
    """The model, at its own pace."""

    def __init__(self, model: StandInModel, *, fixed: float, each: float, rate: float) -> None:
        self._model, self._rate = model, rate
        self._clock = Clock(patience=0.1)
        self.batch = TimedBatch(model.batch, fixed, each)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def score(self, ids: Any, start: int, top: int) -> Any:
        """A scored sequence."""
        begun = time.monotonic()
        scores = self._model.score(ids, start, top)
        self._clock.until(begun, len(ids) / self._rate)
        return scores


async def serve(given: argparse.Namespace) -> None:
    """Until it is stopped."""
    model = await asyncio.to_thread(open_model, given.model, "float32", _SLOTS)
    timed: Any = TimedModel(model, **{name: getattr(given, name) for name in ("fixed", "each", "rate")})
    service = Service(model=timed, weight_version="default")
    async with listening(service, die=lambda: os._exit(9)) as url:
        print(f"listening on {url}", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    for name in ("fixed", "each", "rate"):
        parser.add_argument(f"--{name}", type=float, required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
