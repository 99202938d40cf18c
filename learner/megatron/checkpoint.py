"""A trainer's state on disk, through Megatron's dist_checkpointing.

Guarantees: what `load_state` finds is model, optimizer (master weights, moments, step counts), random stream and the caller's
own numbers as they were at `snapshot`, whatever was trained between that and `write`; ranks in another layout load them
too. The directory is complete when `metadata.json` is in it.

Megatron's own writers start processes: a server for each save, which costs seconds, and for an asynchronous one a fork of this
process, whose threads may hold locks at that moment. Torch's own writer makes the same files in a thread.
"""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as torch_save

from learner.megatron.adamw import GroupStepAdamW

_State = dict[str, Any]  # Megatron's nested dictionaries
_DENSE = "optimizer"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """This rank's part of a state, in torch's form, and what all ranks have in common, as bytes."""

    own: _State
    common: bytes

    def write(self, directory: Path, group: dist.ProcessGroup) -> None:
        """Every rank calls it, over a group of gloo's in which nothing else is said meanwhile. What one rank could not write, all raise."""
        try:
            torch_save(
                self.own,
                storage_writer=FileSystemWriter(directory, single_file_per_rank=True, sync_files=True),
                planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
                process_group=group,
            )
        except CheckpointException as error:
            raise _first_reason(error) from error
        if dist.get_rank() == 0:
            (directory / COMMON_STATE_FNAME).write_bytes(self.common)
            save_config(CheckpointingConfig("torch_dist", 1), str(directory))


def snapshot(student: torch.nn.Module, optimizer: MegatronOptimizer, numbers: dict[str, int], *, copied: bool) -> Snapshot:
    """Every rank calls it. What is not copied must be written before the next step."""
    for part in _parts(optimizer).values():
        if isinstance(part.optimizer, GroupStepAdamW):
            part.optimizer.materialise()
    with _only_new_garbage():
        sharded, common = save_preprocess({**_state(student, optimizer, loading=False), "numbers": numbers})
    keyed, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    if copied:
        _copy(keyed, student)
    content = io.BytesIO()
    torch.save(common, content)
    return Snapshot(mcore_to_pyt_state_dict(keyed, is_loading=False), content.getvalue())


def _copy(keyed: _State, student: torch.nn.Module) -> None:
    """What lies in the model's own memory, or on a device. Megatron has gathered master weights and moments into memory of their own."""
    models = {tensor.untyped_storage().data_ptr() for tensor in student.state_dict(keep_vars=True).values() if torch.is_tensor(tensor)}
    for parts in keyed.values():
        for part in parts:
            if isinstance(part, ShardedTensor) and (part.data.is_cuda or part.data.untyped_storage().data_ptr() in models):
                part.data = part.data.detach().to("cpu", copy=True)


def _first_reason(error: CheckpointException) -> Exception:
    """What the lowest of the ranks that failed said; torch wraps it in what `except Exception` does not catch."""
    reason, _ = error.failures[min(error.failures)]
    return reason if isinstance(reason, Exception) else RuntimeError(str(error))


def load_state(directory: Path, student: torch.nn.Module, optimizer: MegatronOptimizer) -> dict[str, int]:
    """Every rank calls it; returns the caller's numbers."""
    state = dist_checkpointing.load(_state(student, optimizer, loading=True), str(directory))
    with torch.no_grad():
        student.load_state_dict(state["model"])
        for name, part in _parts(optimizer).items():
            part.load_state_dict(state[name] if name == _DENSE else _with_common(state[name], part, state[_DENSE]))
    torch.set_rng_state(state["random"])
    numbers: dict[str, int] = state["numbers"]
    return numbers


def _state(student: Any, optimizer: MegatronOptimizer, *, loading: bool) -> _State:
    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    state = {"model": student.sharded_state_dict(metadata=metadata), "random": _random_stream()}
    for name, part in _parts(optimizer).items():
        _find_what_is_gathered(part)
        state[name] = part.sharded_state_dict(state["model"], is_loading=loading, metadata=metadata)
    return state


def _parts(optimizer: MegatronOptimizer) -> dict[str, Any]:
    """Experts that are divided over ranks have an optimizer of their own, which is empty on a stage without any."""
    parts = zip((_DENSE, "optimizer_of_experts"), getattr(optimizer, "chained_optimizers", [optimizer]), strict=False)
    return {name: part for name, part in parts if part.buffers}


def _with_common(state: _State, part: Any, dense: _State) -> _State:
    """What is not of one parameter is the other optimizer's too: a file of ranks that held all experts has it once."""
    common: _State = part.state_dict()
    for group in common["optimizer"]["param_groups"]:
        group["step"] = dense["optimizer"]["param_groups"][0]["step"]
    return common | {key: dense[key] for key in dense.keys() - {"optimizer", "param_state"}} | {"param_state": state["param_state"]}


def _find_what_is_gathered(optimizer: Any) -> None:
    """Megatron gathers the buckets of a buffer without the padding between them, and then looks for each parameter where it lies with the
    padding: behind the bucket of a tied embedding that a last stage holds, every parameter would be saved shifted."""
    gather = type(optimizer).get_parameter_state_dp_zero

    def padded(**options: Any) -> _State | None:
        gathered: _State | None = gather(optimizer, **options)
        for index, buffer in enumerate(optimizer.buffers) if gathered else ():
            for tensors in gathered[index].values():  # type: ignore[index]
                tensors |= {name: _with_padding(flat, buffer) for name, flat in tensors.items() if isinstance(flat, torch.Tensor)}
        return gathered

    optimizer.get_parameter_state_dp_zero = padded


def _with_padding(flat: torch.Tensor, buffer: Any) -> torch.Tensor:
    """[unpadded sizes of all buckets] -> [size of the buffer], each bucket where it begins."""
    whole = flat.new_zeros(buffer.numel)
    for bucket, part in zip(buffer.buckets, torch.split(flat, [bucket.numel_unpadded for bucket in buffer.buckets]), strict=True):
        whole[bucket.offset : bucket.offset + part.numel()] = part
    return whole


def _random_stream() -> ShardedObject:
    """Torch's default stream, equal on all ranks. Megatron's parallel streams feed dropout only, which is off."""
    return ShardedObject("random", torch.get_rng_state(), (1,), (0,), replica_id=dist.get_rank())


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Megatron collects garbage before each save; going through all imported modules would be two thirds of its time."""
    if gc.get_freeze_count():  # already so
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
