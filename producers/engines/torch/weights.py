"""Puts published weights into the running model: all names and shapes are checked before the first parameter changes.

Copying is in place, so whatever shares a parameter's memory (tied embeddings, fused matrices) changes with it. transformers holds the
experts of a layer in one parameter where the files have one tensor for each expert's matrix. The files are mapped:
`safe_open(...).get_tensor` of safetensors 0.8 keeps a few bytes of every tensor for ever, and a run has thousands of versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import WeightsError
from common.messages import WeightManifest
from common.weights.base import RawTensor
from common.weights.tensorfile import map_tensors

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def swap_weights(model: Any, manifest: WeightManifest, directory: Path) -> None:
    """Raises WeightsError where the files are not this model's full weights; the model is then as before."""
    targets = weight_targets(model)
    sources = map_tensors(directory)
    _check(targets, sources, manifest)
    with torch.inference_mode():
        for name, source in sources.items():
            if targets[name].numel():
                targets[name].copy_(torch.frombuffer(source.buffer, dtype=_DTYPES[source.dtype]).view(source.shape))


def weight_targets(model: Any) -> dict[str, torch.Tensor]:
    """What a file's tensor of each name is copied to."""
    targets: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        experts, _, matrix = name.rpartition(".")
        if not experts.endswith(".experts") or matrix not in {"gate_up_proj", "down_proj"}:
            targets[name] = parameter
            continue
        for expert, rows in enumerate(parameter.detach().unbind()):
            parts = {"gate_proj": rows.chunk(2)[0], "up_proj": rows.chunk(2)[1]} if matrix == "gate_up_proj" else {matrix: rows}
            targets |= {f"{experts}.{expert}.{part}.weight": tensor for part, tensor in parts.items()}
    return targets


def _check(targets: Mapping[str, torch.Tensor], sources: Mapping[str, RawTensor], manifest: WeightManifest) -> None:
    version = tuple(manifest.version)
    unknown = sorted(sources.keys() - targets.keys())
    if unknown:
        raise WeightsError(f"version {version} has {unknown[0]}, which the student has not")
    given = {targets[name].data_ptr() for name in sources}
    absent = sorted(name for name, target in targets.items() if target.data_ptr() not in given)
    if absent:
        raise WeightsError(f"version {version} lacks {absent[0]}")
    for name, source in sources.items():
        if source.shape != tuple(targets[name].shape):
            raise WeightsError(f"version {version} has {name} as {source.shape}, the student as {tuple(targets[name].shape)}")
        if source.dtype not in _DTYPES:
            raise WeightsError(f"version {version} has {name} in {source.dtype}: known are {', '.join(_DTYPES)}")
