"""The seam to wherever weight files lie. Only files travel here; that a version exists is an event on the bus (invariant P9)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from common.messages import Version, WeightManifest


class RawTensor:
    """One tensor as bytes: safetensors dtype name ("BF16", "F32", …), shape, contiguous little-endian buffer. numpy has no bfloat16."""

    __slots__ = ("buffer", "dtype", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], buffer: memoryview) -> None:
        self.dtype = dtype
        self.shape = shape
        self.buffer = buffer


class WeightStore(Protocol):
    """Versions of the student's weights as verified files."""

    async def put(self, version: Version, tensors: Mapping[str, RawTensor]) -> WeightManifest:
        """Writes a version durably (tmp, fsync, rename). Raises WeightsError where the store cannot be written."""

    async def fetch(self, manifest: WeightManifest) -> Path:
        """A local directory with the version's files, digests verified; raises WeightsError."""

    async def versions(self) -> list[Version]:
        """All versions in the store, oldest first."""

    async def gc(self, keep: int, up_to_term: int, pinned: frozenset[Version]) -> None:
        """Deletes versions of terms ≤ `up_to_term` but the newest `keep` and the pinned ones."""
