"""A step's weights become an event (P9): exported, written to the store, named on the bus; then the window moves.

Guarantees: versions on the log grow; a version is on the log only when its files are durable; while an evaluation is open no newer version
appears. One publication at a time: those that fall due meanwhile are made up for by the newest.
Consumes tensors from the maths thread; waits for the store and the bus; unblocks producers, the feeder and the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any  # what a background task returns is nobody's business

import torch

from common.bus.base import Bus
from common.codec import encode
from common.errors import BusFull, StoreAway
from common.messages import Version, WeightManifest
from common.patience import until_mended
from common.pulse import Pulse
from common.weights.base import RawTensor, WeightStore

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_log = logging.getLogger(__name__)


class Publisher:
    """Knows what is published; `published` and `manifest` are the newest."""

    def __init__(self, *, bus: Bus, store: WeightStore, pulse: Pulse, keep: int) -> None:
        self._bus = bus
        self._store = store
        self._pulse = pulse
        self._keep = keep
        self.published: Version | None = None
        self.manifest: WeightManifest | None = None
        self.pinned: frozenset[Version] = frozenset()
        self.count = 0
        self.gated = False  # an evaluation is open

    async def publish(self, version: Version, tensors: Mapping[str, torch.Tensor]) -> WeightManifest:
        """Durable in the store, then on the log."""
        assert not self.gated, "an evaluation is open"
        assert self.published is None or version > self.published, f"{version} after {self.published}"
        raw = {name: raw_tensor(tensor) for name, tensor in tensors.items()}
        manifest = await until_mended(self._pulse, "weight store", lambda: self._store.put(version, raw), StoreAway)
        await self.announce(version.term, manifest)
        try:
            await self._store.gc(self._keep, version.term, self.pinned | {version})
        except StoreAway as error:
            _log.warning("old weights stay for now", extra={"reason": str(error)})
        return manifest

    async def announce(self, term: int, manifest: WeightManifest) -> None:
        """Puts a version that lies in the store on the log."""
        with self._pulse.cpu("publish"):
            payload = encode(manifest)
        await until_mended(self._pulse, "server memory", lambda: self._bus.publish(term, payload, self._keep), BusFull)
        self.published = manifest.version
        self.manifest = manifest
        self.count += 1
        self._pulse.set(published=f"{manifest.version.term}:{manifest.version.step}", published_step=manifest.version.step)
        self._pulse.add(publications=1)
        _log.debug("published", extra={"version": manifest.version, "bytes": manifest.bytes})


class Background:
    """At most one task at a time; a failure comes out at the next `check`, `wait` or `close`."""

    def __init__(self, changed: asyncio.Event) -> None:
        self._changed = changed
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether it still runs."""
        return self._task is not None and not self._task.done()

    def start(self, work: Callable[[], Awaitable[Any]], name: str) -> None:
        """Begins; the one before must have ended."""
        assert not self.busy
        self.check()
        self._task = asyncio.create_task(_run(work), name=name)
        self._task.add_done_callback(lambda _: self._changed.set())

    def check(self) -> None:
        """Raises what the last one failed with."""
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            task.result()

    async def wait(self) -> None:
        """Until it has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])
            self.check()

    async def close(self) -> None:
        """Cancels it."""
        if self._task is not None:
            await end(self._task)
            self._task = None


async def end(task: asyncio.Task[Any]) -> None:
    """Cancels it; what it failed with is not wanted any more."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


async def _run(work: Callable[[], Awaitable[Any]]) -> None:
    await work()


def raw_tensor(tensor: torch.Tensor) -> RawTensor:
    """Its bytes, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return RawTensor(_DTYPES[tensor.dtype], tuple(tensor.shape), flat.numpy().data)
