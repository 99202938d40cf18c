"""Model files in, model tensors out.

Guarantees: every parameter is filled from a Hugging Face safetensors file or `load_weights` fails; every tensor of the file
is used or it fails; what `export_weights` returns has the names, shapes and (at the same dtype) the bits of the file, adapters merged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from common.errors import ConfigError
from learner.megatron.architecture import Architecture
from learner.megatron.distributed import device
from learner.megatron.lora import merged_weights
from learner.megatron.mapping import Rule, join, rules, split
from learner.megatron.stages import Stage

_EMBEDDING = "model.embed_tokens.weight"


def load_weights(
    model: torch.nn.Module,
    directory: Path,
    architecture: Architecture,
    *,
    group: dist.ProcessGroup,
    fused_norms: bool,
    stage: Stage | None = None,
) -> None:
    """Copy this tensor-parallel rank's share of the stage's files into the parameters, in the parameters' own dtype."""
    parameters = dict(model.named_parameters())
    table = list(rules(architecture, fused_norms=fused_norms, stage=stage))
    assert {rule.megatron for rule in table} == parameters.keys(), "the mapping does not cover the model"
    with _open(directory) as tensors, torch.no_grad():
        _compare_names(rules(architecture, fused_norms=fused_norms), tensors.keys(), architecture, directory)
        for rule in table:
            parts = [tensors[name].get_tensor(name) for name in rule.hugging_face]
            rank, size = (0, 1) if rule.alone else (group.rank(), group.size())
            share = split(rule, parts, architecture, rank=rank, size=size)
            if share.shape != parameters[rule.megatron].shape:
                raise ConfigError(f"{directory}: the shape of {rule.hugging_face[0]} disagrees with config.json")
            parameters[rule.megatron].copy_(share)


def export_weights(
    model: torch.nn.Module,
    architecture: Architecture,
    *,
    group: dist.ProcessGroup,
    fused_norms: bool,
    dtype: torch.dtype,
    stage: Stage | None = None,
    pipeline: dist.ProcessGroup | None = None,
    experts: dist.ProcessGroup | None = None,
    first: bool = True,
    first_of_experts: bool = True,
) -> dict[str, torch.Tensor]:
    """Hugging Face tensors on the CPU, gathered on the first rank of each group; the others get an empty dict.

    `first`: no replica before this one has the same layers; `first_of_experts`: nor the same experts, where ranks of the group `experts`
    hold different ones.
    """
    parameters, merged = dict(model.named_parameters()), merged_weights(model)
    exported: dict[str, torch.Tensor] = {}
    for rule in rules(architecture, fused_norms=fused_norms, stage=stage):
        if rule.hugging_face == (_EMBEDDING,) and stage is not None and not stage.first:
            continue  # the copy that the last stage keeps
        if not (first_of_experts if rule.alone else first):
            continue
        own = (merged[rule.megatron]() if rule.megatron in merged else parameters[rule.megatron].detach()).to(dtype)
        shards = [own] if rule.alone else _gather(own, group)
        for name, tensor in join(rule, shards, architecture).items() if shards else ():
            exported[name] = tensor.to("cpu", memory_format=torch.contiguous_format, copy=True)
    for others, taking_part in ((experts, first_of_experts), (pipeline, first and not group.rank())):
        if others is not None and others.size() > 1 and taking_part:
            exported = _from_all(exported, others, dtype)
    return exported


def _from_all(own: dict[str, torch.Tensor], group: dist.ProcessGroup, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The first rank receives from the others, one tensor after the other; those end with nothing."""
    shapes: list[dict[str, torch.Size]] = [{} for _ in range(group.size())]
    dist.all_gather_object(shapes, {name: tensor.shape for name, tensor in own.items()}, group=group)
    if group.rank():
        for tensor in own.values():
            dist.send(tensor.to(device()), group=group, group_dst=0)
        return {}
    for index in range(1, group.size()):
        for name, shape in shapes[index].items():
            tensor = torch.empty(shape, dtype=dtype, device=device())
            dist.recv(tensor, group=group, group_src=index)
            own[name] = tensor.cpu()
    return own


def _gather(shard: torch.Tensor, group: dist.ProcessGroup) -> list[torch.Tensor]:
    if group.size() == 1:
        return [shard]
    shards = [torch.empty_like(shard) for _ in range(group.size())] if group.rank() == 0 else None
    dist.gather(shard, shards, group=group, group_dst=0)
    return shards or []


def _compare_names(table: Iterable[Rule], found: Any, architecture: Architecture, directory: Path) -> None:
    wanted = {name for rule in table for name in rule.hugging_face}
    unused = {name for name in found - wanted if not name.endswith(".rotary_emb.inv_freq")}
    if architecture.tied:
        unused.discard("lm_head.weight")  # some tools write the tied copy out
    for problem, names in (("lacks", wanted - found), ("has the unknown tensor", unused)):
        if names:
            raise ConfigError(f"{directory} {problem} {min(names)}: its files do not belong to its config.json")


@contextmanager
def _open(directory: Path) -> Iterator[Mapping[str, Any]]:  # safetensors' handles have no public type
    """Map each tensor name to the open file that holds it."""
    index = directory / "model.safetensors.index.json"
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.exists() else []
    names = sorted(set(shards)) or ["model.safetensors"]
    with ExitStack() as stack:
        handles: dict[str, Any] = {}
        for name in names:
            if not (directory / name).is_file():
                raise ConfigError(f"{directory} holds no {name}: save the model as safetensors")
            try:
                handle = stack.enter_context(safe_open(directory / name, framework="pt"))
            except SafetensorError as error:
                raise ConfigError(f"{directory / name} cannot be read ({error}): copy the whole model again") from None
            handles |= dict.fromkeys(handle.keys(), handle)
        yield handles
