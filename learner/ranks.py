"""The trainer on one or many ranks: rank 0 serves the run, the others follow its commands.

Guarantees: every rank makes its samples from the payloads of its own replica, which rank 0 deals out, and all have them before the step;
only numbers and raw bytes travel with commands, never pickles; a rank that dies ends the others with its name.
RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say who is who, as torchrun sets them; `ranks_beside` sets them on one machine.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import socket
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from common.codec import decode, encode
from common.config import RunConfig
from common.errors import ConfigError, RefluxError, UserError
from common.loading import loading
from common.messages import StepRecord
from common.pulse import Pulse
from learner.batch import samples_of, scored_of
from learner.dealing import deal, hand_of, receive
from learner.nodes import Node
from learner.signs import Heed, Signs
from learner.training import LossFunction, StepStats, TrainerSettings, TrainingSample

if TYPE_CHECKING:
    from learner.megatron.trainer import MegatronTrainer

_STEP, _EXPORT, _SAVE, _COPY, _LOAD, _CLOSE = range(6)
_IDLE = dt.timedelta(days=30)  # followers wait as long as rank 0 has nothing to train on, and gives signs
_LOOK_S = 0.25
_GRACE_LOOKS = 8
_GOODBYE_S = 5.0
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RankedTrainer:
    """A learner.maths.Trainer over this process's rank 0 and its followers."""

    def __init__(self, trainer: MegatronTrainer, *, config: RunConfig, loss: LossFunction, pulse: Pulse) -> None:
        self._trainer = trainer
        self._dtype = _DTYPES[config.weights.dtype]
        self._loss = loss
        self._pulse = pulse
        self._commands: dist.ProcessGroup | None = None
        self._group: dist.ProcessGroup | None = None
        self._signs: Signs | None = None
        if dist.get_world_size() > 1:
            self._commands, self._group, signs = _groups(config)
            self._signs = Signs(signs, config.learner.rank_timeout_s)
        self._replicas = [] if self._group is None else _replicas(trainer, self._group)

    def step(self, record: StepRecord, samples: Sequence[TrainingSample], lr: float) -> StepStats:
        """One step on the global batch."""
        if self._group is None:
            return self._trainer.step(samples, self._loss, lr)
        shares = _shares(samples, self._trainer.data_parallel[1])
        self._tell(_STEP, lr=lr)
        deal([encode(hand_of(record, share)) for share in shares], self._replicas, self._group)
        return self._trainer.step([samples[place] for place in shares[self._trainer.data_parallel[0]]], self._loss, lr)

    def export(self) -> Mapping[str, torch.Tensor]:
        """A copy of the weights."""
        self._tell(_EXPORT)
        with self._pulse.cpu("publish"):
            return self._trainer.export(self._dtype)

    def save(self, directory: Path) -> None:
        """All ranks write."""
        self._tell(_SAVE, str(directory).encode())
        self._trainer.save(directory)

    def begin_save(self, directory: Path) -> Callable[[], None]:
        """All ranks copy, and write in threads of their own."""
        self._tell(_COPY, str(directory).encode())
        return self._trainer.begin_save(directory)

    def load(self, directory: Path) -> None:
        """All ranks read."""
        self._tell(_LOAD, str(directory).encode())
        self._trainer.load(directory)

    def close(self) -> None:
        """Sends the followers home."""
        self._tell(_CLOSE)
        if self._signs is not None:
            self._signs.close()
        self._trainer.close()

    def _tell(self, command: int, payload: bytes = b"", lr: float = 0.0) -> None:
        if self._commands is None:
            return
        dist.broadcast(torch.tensor([command, len(payload), lr], dtype=torch.float64), 0, group=self._commands)
        if payload:
            dist.broadcast(torch.frombuffer(bytearray(payload), dtype=torch.uint8), 0, group=self._commands)


def build_trainer(config: RunConfig, pulse: Pulse) -> RankedTrainer:
    """This process's trainer; joins the other ranks."""
    with loading():
        from learner.losses import loss_for
        from learner.megatron.trainer import MegatronTrainer

        trainer = MegatronTrainer.build(settings(config), pulse)
    return RankedTrainer(trainer, config=config, loss=loss_for(config.loss), pulse=pulse)


def settings(config: RunConfig) -> TrainerSettings:
    """What the trainer needs of the configuration."""
    optimizer, learner = config.optimizer, config.learner
    return TrainerSettings(
        student=config.model.student,
        dtype=config.model.dtype,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.clip_grad,
        token_budget=learner.micro_batch_tokens,
        seed=config.run.seed,
        threads=config.service.torch_threads,
        timeout_s=learner.rank_timeout_s,
        **{field.name: getattr(learner, field.name) for field in fields(TrainerSettings) if hasattr(learner, field.name)},
    )


def follow(config: RunConfig) -> None:
    """The life of a rank above 0: does what rank 0 says until it says goodbye. Raises RefluxError."""
    try:
        _follow(config)
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise RefluxError(f"rank 0 or another rank is gone ({error}): start the learner again, it resumes") from error


def _follow(config: RunConfig) -> None:
    from learner.losses import loss_for
    from learner.megatron.trainer import MegatronTrainer

    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 drains; a follower ends with it
        signal.signal(number, signal.SIG_IGN)
    trainer, loss = MegatronTrainer.build(settings(config)), loss_for(config.loss)
    commands, group, signs = _groups(config)
    heed = Heed(signs, config.learner.rank_timeout_s)
    _replicas(trainer, group)
    while (told := _listen(commands))[0] != _CLOSE:
        command, payload, lr = told
        if command == _STEP:
            record = decode(receive(*trainer.data_parallel, group), StepRecord)
            assert isinstance(record, StepRecord)
            samples, _ = samples_of(record, scored_of(record), config.learner.max_staleness)
            trainer.step(samples, loss, lr)
        elif command == _EXPORT:
            trainer.export(_DTYPES[config.weights.dtype])
        elif command in {_SAVE, _COPY}:  # how it ends, rank 0 finds out
            trainer.begin_save(Path(payload.decode()), copied=command == _COPY)
        else:
            trainer.load(Path(payload.decode()))
    heed.close()
    trainer.close()


def _groups(config: RunConfig) -> tuple[dist.ProcessGroup, dist.ProcessGroup, dist.ProcessGroup]:
    """For commands, which may be long in coming; for all else, where a silent rank is as good as dead; for signs. Raises ConfigError."""
    timeout = dt.timedelta(seconds=config.learner.rank_timeout_s)
    commands = dist.new_group(backend="gloo", timeout=timeout if dist.get_rank() == 0 else _IDLE)  # gloo sends to those that listen
    group = dist.new_group(backend="gloo", timeout=timeout)
    signs = dist.new_group(backend="gloo", timeout=timeout)
    _compare(config, group)
    return commands, group, signs


def _listen(group: dist.ProcessGroup) -> tuple[int, bytes, float]:
    header = torch.zeros(3, dtype=torch.float64)
    dist.broadcast(header, 0, group=group)
    command, length, lr = header.tolist()
    payload = torch.empty(int(length), dtype=torch.uint8)
    if length:
        dist.broadcast(payload, 0, group=group)
    return int(command), payload.numpy().tobytes(), lr


def _compare(config: RunConfig, group: dist.ProcessGroup) -> None:
    """ConfigError on every rank when one was started with another configuration than rank 0."""
    learner = config.learner
    sizes = (learner.ranks, learner.tensor_parallel, learner.pipeline_parallel, learner.context_parallel, learner.expert_parallel)
    layout = (*sizes, learner.sequence_parallel, learner.micro_batch_tokens)
    own = zlib.crc32(f"{config.identity_digest} {layout} {config.weights.dtype}".encode())
    everyone = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(everyone, torch.tensor([own]), group=group)
    if others := [str(rank) for rank, found in enumerate(everyone) if found.item() != everyone[0].item()]:
        raise ConfigError(f"learner rank {', '.join(others)} has another configuration than rank 0: start all with the same file and --set")


def _replicas(trainer: MegatronTrainer, group: dist.ProcessGroup) -> list[int]:
    """Which data-parallel replica each rank belongs to."""
    everyone = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(everyone, torch.tensor([trainer.data_parallel[0]]), group=group)
    return [int(one) for one in everyone]


def _shares(samples: Sequence[TrainingSample], replicas: int) -> list[list[int]]:
    from learner.megatron.packing import share_out

    return share_out([sample.length for sample in samples], replicas)


async def _start(count: int, argv: Sequence[str], node: Node | None) -> list[asyncio.subprocess.Process]:
    """Those of this machine, with this process as rank 0; none where torchrun has started them already."""
    if count == 1 or "WORLD_SIZE" in os.environ:
        return []
    node = node or Node(0, 1, count, "127.0.0.1", _free_port())
    os.environ.update(node.environment(0))
    return [
        await asyncio.create_subprocess_exec(sys.executable, "-m", "learner", *argv, env=os.environ | node.environment(local))
        for local in range(1, node.ranks)
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def ranks_beside(count: int, argv: Sequence[str], node: Node | None = None) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
    """This machine's other ranks while the body lives, and a watch that fails when one dies; a failing body is blamed on a dead rank."""
    ranks = await _start(count, argv, node)
    try:
        yield lambda: _watch(ranks)
    except Exception as error:
        if _is_the_users(error):  # every rank refuses alike, and this one has said why
            raise
        for _ in range(_GRACE_LOOKS):  # the collective may fail before the exit is noticed
            if dead := _dead(ranks):
                raise RefluxError(dead) from error
            await asyncio.sleep(_LOOK_S)
        if node and _is_lost(error):
            raise RefluxError(f"a rank on another node is gone ({error}): start the learner on every node again, it resumes") from error
        raise
    finally:
        await _end(ranks)


async def _end(ranks: Sequence[asyncio.subprocess.Process]) -> None:
    """They have been sent home or do not listen any more."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_GOODBYE_S):
            await asyncio.gather(*(process.wait() for process in ranks))
    for process in ranks:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _is_lost(error: BaseException) -> bool:
    """Whether a rank found no other end of a connection; torch says it in words only."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_lost, error.exceptions))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _is_the_users(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_the_users, error.exceptions))
    return isinstance(error, UserError)


async def _watch(ranks: Sequence[asyncio.subprocess.Process]) -> None:
    while True:
        if dead := _dead(ranks):
            await asyncio.sleep(_LOOK_S * _GRACE_LOOKS)  # what killed it may stop this rank as well, which says it better
            raise RefluxError(dead)
        await asyncio.sleep(_LOOK_S)


def _dead(ranks: Sequence[asyncio.subprocess.Process]) -> str:
    """Who died; empty if nobody did. A rank that was sent home ends with 0."""
    codes = {rank: process.returncode for rank, process in enumerate(ranks, 1) if process.returncode}
    said = (f"learner rank {rank} died with exit code {code}" for rank, code in codes.items())
    return f"{', '.join(said)}: start the learner again, it resumes" if codes else ""
