"""Safetensors files, written from and checked as raw bytes: no torch, no copy of the tensors, one pass to write and hash.

The format (huggingface.co/docs/safetensors): u64 length of the header | JSON header {name: {dtype, shape, data_offsets}}, padded with
spaces to 8 bytes | the tensors' bytes without gaps. The raw-bytes functions of the safetensors package changed their signature between
0.7 and 0.8, hence the twenty lines here; the tests read the result with that package.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO  # Any: the header's values are only known after they are checked

from common.errors import WeightsError
from common.messages import WeightFile
from common.weights.base import RawTensor

_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_BITS |= {"I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}
_MAX_HEADER = 8 << 20
_PIECE = 1 << 20


def write_tensors(path: Path, tensors: Mapping[str, RawTensor]) -> tuple[WeightFile, dict[str, str]]:
    """Writes a file of `tensors`, not synced yet; returns it with the digest of each tensor. Raises OSError, WeightsError."""
    prefix, names = _prefix(tensors)
    whole, end = hashlib.sha256(prefix), len(prefix)
    digests: dict[str, str] = {}
    with path.open("xb", buffering=1 << 20) as file:
        file.write(prefix)
        for name in names:
            buffer = flat_bytes(name, tensors[name])
            file.write(buffer)
            digest = hashlib.sha256(buffer)
            whole.update(digest.digest())
            digests[name] = digest.hexdigest()
            end += len(buffer)
    return WeightFile(path.name, end, whole.hexdigest()), digests


def write_content(path: Path, layout: Mapping[str, RawTensor], content: Callable[[str], memoryview | bytearray]) -> None:
    """Writes tensors of these dtypes and shapes, one after the other as `content` gives their bytes. Raises OSError, WeightsError."""
    prefix, names = _prefix(layout)
    with path.open("xb", buffering=1 << 20) as file:
        file.write(prefix)
        for name in names:
            file.write(flat_bytes(name, RawTensor(layout[name].dtype, layout[name].shape, memoryview(content(name)))))


def map_tensors(directory: Path) -> dict[str, RawTensor]:
    """The tensors of all files, read when they are looked at. Raises WeightsError."""
    tensors: dict[str, RawTensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # as long as the tensors; writable, as torch wishes
            tensors |= _mapped(memoryview(mapped), path.name)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path} cannot be read: {error}") from None
    return tensors


def _mapped(file: memoryview, name: str) -> dict[str, RawTensor]:
    end = 8 + int.from_bytes(file[:8], "little")
    if end > len(file):
        raise WeightsError(f"{name} is no safetensors file: its header does not fit")
    header = bytes(file[8:end])
    _places(header, len(file) - end, name)
    tensors = {}
    for key, entry in json.loads(header).items():
        if key != "__metadata__":
            try:
                begin, stop = entry["data_offsets"]
                tensors[key] = RawTensor(entry["dtype"], tuple(entry["shape"]), file[end + begin : end + stop])
                flat_bytes(key, tensors[key])
            except (KeyError, TypeError) as error:
                raise WeightsError(f"{name} is no safetensors file: {error!r} in its header") from None
    return tensors


def _prefix(tensors: Mapping[str, RawTensor]) -> tuple[bytes, list[str]]:
    """Everything before the first tensor's bytes, and the order of the tensors."""
    names = sorted(tensors, key=lambda name: (-bits_of(tensors[name].dtype), name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + len(flat_bytes(name, tensors[name]))
        entries[name] = {"dtype": tensors[name].dtype, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, names


def check_tensors(file: BinaryIO, expected: WeightFile) -> dict[str, str]:
    """Digests of the tensors in `file`, read once; its size and digest must be `expected`'s. Raises OSError, WeightsError.

    Read in pieces, not mapped: a file that is truncated or deleted elsewhere while it is mapped would kill the process.
    """
    size = os.fstat(file.fileno()).st_size
    if size != expected.bytes:
        raise WeightsError(f"{expected.name} has {size} bytes where its manifest says {expected.bytes}")
    start = _read(file, 8, expected.name)
    length = int.from_bytes(start, "little")
    if length > min(_MAX_HEADER, size - 8):
        raise WeightsError(f"{expected.name} is no safetensors file: a header of {length} bytes does not fit")
    header = _read(file, length, expected.name)
    places = _places(header, size - 8 - length, expected.name)
    whole, digests = hashlib.sha256(start + header), {}
    for name, count in places.items():
        digest = hashlib.sha256()
        for at in range(0, count, _PIECE):
            digest.update(_read(file, min(_PIECE, count - at), expected.name))
        whole.update(digest.digest())
        digests[name] = digest.hexdigest()
    if whole.hexdigest() != expected.digest:
        raise WeightsError(f"{expected.name} does not have the digest of its manifest: the file is damaged")
    return digests


def _read(file: BinaryIO, count: int, name: str) -> bytes:
    piece = file.read(count)
    if len(piece) != count:
        raise WeightsError(f"{name} ends too early: the file is damaged")
    return piece


def _places(header: bytes, room: int, name: str) -> dict[str, int]:
    """How many bytes each tensor has, in the order in which they lie; together they must fill the `room` behind the header."""
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        offsets = sorted((*entry["data_offsets"], key) for key, entry in entries.items())
        ends = [0, *(end for _, end, _ in offsets)]
        filled = ends[-1] == room and all(
            start == at <= end and type(end) is int for (start, end, _), at in zip(offsets, ends, strict=False)
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{name} is no safetensors file: {error!r} in its header") from None
    if not filled:
        raise WeightsError(f"{name} is no safetensors file: its tensors do not fill it without gaps")
    return {key: end - start for start, end, key in offsets}


def flat_bytes(name: str, tensor: RawTensor) -> memoryview:
    """The tensor's bytes. Raises WeightsError where they are not as many as its shape needs."""
    view = memoryview(tensor.buffer)
    expected = math.prod(tensor.shape) * bits_of(tensor.dtype) // 8
    if view.nbytes != expected:
        raise WeightsError(f"{name} has {view.nbytes} bytes where {tensor.dtype} {list(tensor.shape)} needs {expected}")
    return view.cast("B") if view.nbytes else memoryview(b"")


def bits_of(dtype: str) -> int:
    """Of one element. Raises WeightsError."""
    if dtype not in _BITS:
        raise WeightsError(f"{dtype!r} is no dtype of safetensors: known are {', '.join(_BITS)}")
    return _BITS[dtype]
