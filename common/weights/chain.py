"""A version as deltas to the one before, and back: one safetensors file with `delta/NAME` (uint8, see delta.py) for tensors that changed a
little, `full/NAME` for those where a delta would be larger, and nothing for those that did not change.

Guarantees: what `rebuild` writes has, tensor by tensor, the digests of the manifest, or it raises WeightsError; one tensor is in memory at
a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import WeightsError
from common.messages import Version, WeightFile, WeightManifest
from common.weights.base import RawTensor
from common.weights.delta import apply_deltas, encode_delta
from common.weights.tensorfile import bits_of, flat_bytes, map_tensors, write_content, write_tensors

MOST_SHARE = 0.5
"""A delta of more than this share of the full version is not worth the chain: the version is published in full."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the next delta is a difference to; `deltas` lie between it and the last full version."""

    version: Version
    tensors: Mapping[str, RawTensor]
    digests: Mapping[str, str]
    deltas: int


@dataclass(frozen=True, slots=True)
class Link:
    """A verified local version: its manifest's files lie in `directory`; `digests` are those of the tensors in the files."""

    directory: Path
    digests: Mapping[str, str]


def write_delta(path: Path, base: Published, tensors: Mapping[str, RawTensor]) -> tuple[WeightFile, dict[str, str]] | None:
    """The file, not synced yet, and the digests of the whole tensors; None where a full version is better. Raises OSError, WeightsError."""
    parts: dict[str, RawTensor] = {}
    digests: dict[str, str] = {}
    room = MOST_SHARE * sum(_size(tensor) for tensor in tensors.values())
    for name, tensor in tensors.items():
        flat = flat_bytes(name, tensor)
        digests[name] = hashlib.sha256(flat).hexdigest()
        part = _part(base, name, tensor, flat, digests[name])
        room -= sum(_size(tensor) for tensor in part.values())
        if room < 0:
            return None
        parts |= part
    return write_tensors(path, parts)[0], digests


def _part(base: Published, name: str, tensor: RawTensor, flat: memoryview, digest: str) -> dict[str, RawTensor]:
    before = base.tensors.get(name)
    if before is None or (before.dtype, before.shape) != (tensor.dtype, tensor.shape):
        return {f"full/{name}": tensor}
    if base.digests[name] == digest:
        return {}
    old, width = flat_bytes(name, before), bits_of(tensor.dtype) // 8
    delta = encode_delta(old, flat, width=width, base_digest=base.digests[name], digest=digest)
    return {f"full/{name}": tensor} if delta is None else {f"delta/{name}": RawTensor("U8", (len(delta),), memoryview(delta))}


def _size(tensor: RawTensor) -> int:
    return memoryview(tensor.buffer).nbytes


def rebuild(path: Path, manifest: WeightManifest, base: Link, deltas: Sequence[Link]) -> None:
    """Writes the full version: `base` and then `deltas`, oldest first. Raises OSError, WeightsError."""
    start = map_tensors(base.directory)
    changes = [map_tensors(link.directory) for link in deltas]
    layout = {name: _origin(name, start, changes)[0] for name in manifest.tensors}

    def content(name: str) -> memoryview | bytearray:
        tensor, behind = _origin(name, start, changes)
        digest = base.digests[name] if not behind else deltas[behind - 1].digests[f"full/{name}"]
        blobs = [change[f"delta/{name}"].buffer for change in changes[behind:] if f"delta/{name}" in change]
        if not blobs:
            _must_be(name, digest, manifest)
            return tensor.buffer
        result = bytearray(tensor.buffer)
        try:
            digest = apply_deltas(result, digest, blobs)
        except WeightsError as error:
            raise WeightsError(f"weights {tuple(manifest.version)}, tensor {name}: {error}") from None
        _must_be(name, digest, manifest)
        return result

    write_content(path, layout, content)


def _origin(name: str, start: Mapping[str, RawTensor], changes: Sequence[Mapping[str, RawTensor]]) -> tuple[RawTensor, int]:
    """The newest whole tensor of that name, and how many of the deltas lie before it."""
    for behind in range(len(changes), 0, -1):
        if f"full/{name}" in changes[behind - 1]:
            return changes[behind - 1][f"full/{name}"], behind
    if name not in start:
        raise WeightsError(f"the deltas lead to no tensor {name}: one of them is missing")
    return start[name], 0


def _must_be(name: str, digest: str, manifest: WeightManifest) -> None:
    if manifest.tensors[name] != digest:
        raise WeightsError(f"weights {tuple(manifest.version)}: tensor {name} does not have the digest of its manifest")
