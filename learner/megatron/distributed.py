"""Process groups of this rank: torch.distributed, and Megatron's division of it.

Guarantees: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and LOCAL_RANK, as torchrun sets them, decide who takes part; without
them this process is a group of its own, which opens no port; the ranks meet at the address of MASTER_ADDR and no other, but for torchrun,
which has a meeting place of its own. Gloo where there is no CUDA, NCCL where there is.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch._C._distributed_c10d import HashStore, TCPStore

from common.errors import ConfigError

_log = logging.getLogger(__name__)


def device() -> torch.device:
    """The device this rank computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def start(
    *,
    tensor_parallel: int,
    pipeline_parallel: int = 1,
    context_parallel: int = 1,
    expert_parallel: int = 1,
    seed: int,
    timeout_s: float,
    join_timeout_s: float = 600.0,
) -> None:
    """Join the group and divide it; a group that an earlier trainer of this process left behind is an error."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    together = tensor_parallel * pipeline_parallel * context_parallel
    if size % together:
        groups = f"(tensor parallel {tensor_parallel}, pipeline parallel {pipeline_parallel}, context parallel {context_parallel})"
        raise ConfigError(f"{size} learner ranks cannot be divided into groups of {together} {groups}: start a multiple of it")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron's overlap of copies and kernels relies on it
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    timeout = dt.timedelta(seconds=timeout_s)
    if size > 1:
        _join(backend, size, timeout, dt.timedelta(seconds=join_timeout_s))
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    _divide(
        tensor_parallel, pipeline_parallel, context_parallel, expert_parallel, alone=size == 1 and backend == "gloo", timeout_s=timeout_s
    )
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def _join(backend: str, size: int, timeout: dt.timedelta, patience: dt.timedelta) -> None:
    """By a store of our own, which listens where we bound it: torch's own listens on every interface. Raises ConfigError."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
        return
    rank, host, port = int(os.environ["RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listening = _listen(host, port) if rank == 0 else None
    _log.info("rank %d waits at %s:%d for all %d ranks, %d s at most", rank, host, port, size, patience.total_seconds())
    try:
        store = TCPStore(host, port, size, rank == 0, timeout=patience, master_listen_fd=listening)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except dist.DistError:
        raise ConfigError(
            f"learner rank {rank} waited {patience.total_seconds():g} s at {host}:{port} and not all {size} ranks came: "
            "start the learner on every node, with the same --rdzv and its own --node-rank"
        ) from None


def _listen(host: str, port: int) -> int:
    """A file descriptor."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family) as server:
            return server.detach()
    except OSError as error:
        raise ConfigError(f"rank 0 cannot listen at {host}:{port} ({error}): give an address of this machine and a free port") from None


def _divide(
    tensor_parallel: int, pipeline_parallel: int, context_parallel: int, expert_parallel: int, *, alone: bool, timeout_s: float
) -> None:
    """Make Megatron's groups. A process that is alone is each of them itself: every group of gloo's has three threads, and one of them
    wakes a hundred times a second, which for twenty groups costs 2 % of a core."""
    create_group = parallel_state.create_group
    if alone:
        parallel_state.create_group = lambda *_, **__: dist.group.WORLD
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor_parallel,
            pipeline_model_parallel_size=pipeline_parallel,
            context_parallel_size=context_parallel,
            expert_model_parallel_size=expert_parallel,
            expert_tensor_parallel_size=1 if expert_parallel > 1 else None,
            distributed_timeout_minutes=timeout_s / 60,  # Megatron's groups have their own
        )
    finally:
        parallel_state.create_group = create_group


def stop() -> None:
    """Leave the group; a process that exits without it aborts in gloo's destructor."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():  # Megatron destroys its gloo groups, which of a process alone are the whole
        dist.destroy_process_group()
