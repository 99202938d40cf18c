"""The trained student as a Hugging Face model directory that AutoModelForCausalLM.from_pretrained loads.

Guarantee: whole or not at all; everything but the weights (configuration, tokenizer, generation defaults) is the student's own. Weights
above `_SHARD_BYTES` lie in several files with an index, as every reader of such directories knows them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from common.errors import DiskFull
from learner.disk import needs_room, sync_directory, sync_file

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
_SHARD_BYTES = 5 * 10**9


def export_model(student: Path, tensors: Mapping[str, torch.Tensor], dtype: str, target: Path, *, shard_bytes: int = _SHARD_BYTES) -> None:
    """Writes `target`; an older one is replaced. A file holds at most `shard_bytes` of tensors, but at least one tensor. DiskFull
    leaves nothing of it."""
    temporary = target.with_name(f".{target.name}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        with needs_room(target.parent, "the model"):
            _write(student, tensors, dtype, temporary, shard_bytes)
    except DiskFull:
        shutil.rmtree(temporary, ignore_errors=True)  # others need the room
        raise
    if target.exists():
        shutil.rmtree(target)
    temporary.replace(target)
    sync_directory(target.parent)


def _write(student: Path, tensors: Mapping[str, torch.Tensor], dtype: str, temporary: Path, shard_bytes: int) -> None:
    shutil.copytree(student, temporary, ignore=shutil.ignore_patterns(*_WEIGHTS, "optimizer*", ".*"))
    config = json.loads((temporary / "config.json").read_text())
    config.pop("torch_dtype", None)
    (temporary / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n")
    save_torch_state_dict(dict(tensors), temporary, max_shard_size=shard_bytes, metadata={"format": "pt"})
    for path in temporary.rglob("*"):
        sync_directory(path) if path.is_dir() else sync_file(path)


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """A version's tensors, from the weight store's directory."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors
