"""The identity of a model directory's weights: equal digests mean equal bytes."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from common.errors import ConfigError


def weights_digest(directory: Path) -> str:
    """sha256 over the sha256 of every safetensors file, by name; a file is read again only when its size or time has changed."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{directory} has no .safetensors files: save the model with save_pretrained(…, safe_serialization=True)")
    total = hashlib.sha256()
    for file in files:
        status = file.stat()
        total.update(_file_digest(file, status.st_size, status.st_mtime_ns))
    return f"sha256:{total.hexdigest()}"


@lru_cache(maxsize=1024)
def _file_digest(file: Path, _size: int, _mtime_ns: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
