"""Puts published weights into the running model: all names and shapes are checked before the first parameter changes.

Copying is in place, so whatever shares a parameter's memory (tied embeddings, fused matrices) changes with it.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.errors import WeightsError
from common.messages import WeightManifest


def swap_weights(model: Any, manifest: WeightManifest, directory: Path) -> None:
    """Raises WeightsError where the files are not this model's full weights; the model is then as before."""
    targets = dict(model.named_parameters(remove_duplicate=False))
    with ExitStack() as files:
        sources = _open(directory, files)
        _check(targets, sources, manifest)
        with torch.inference_mode():
            for name, source in sources.items():
                targets[name].copy_(source.get_tensor(name))


def _open(directory: Path, files: ExitStack) -> dict[str, Any]:
    """Tensor name → the open file it lies in."""
    sources: dict[str, Any] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            opened = files.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
        sources.update(dict.fromkeys(opened.keys(), opened))
    return sources


def _check(targets: dict[str, torch.nn.Parameter], sources: dict[str, Any], manifest: WeightManifest) -> None:
    version = tuple(manifest.version)
    unknown = sorted(sources.keys() - targets.keys())
    if unknown:
        raise WeightsError(f"version {version} has {unknown[0]}, which the student has not")
    given = {targets[name].data_ptr() for name in sources}
    absent = sorted(name for name, target in targets.items() if target.data_ptr() not in given)
    if absent:
        raise WeightsError(f"version {version} lacks {absent[0]}")
    for name, source in sources.items():
        shape = tuple(source.get_slice(name).get_shape())
        if shape != tuple(targets[name].shape):
            raise WeightsError(f"version {version} has {name} as {shape}, the student as {tuple(targets[name].shape)}")
