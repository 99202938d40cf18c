"""One optimizer step after another on a Megatron student.

Guarantees: every rank calls the same methods in the same order, each with its own share of the batch; the loss and its
gradient are the exact mean over all trained tokens of all ranks and micro-batches, however unequal or empty; a loss or
gradient norm that is not finite stops the trainer before (loss) or at (norm) the update, never silently.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig

from common.errors import ConfigError
from common.pulse import Pulse
from learner.megatron import distributed
from learner.megatron.adamw import use_group_step_adamw
from learner.megatron.architecture import Architecture, read_architecture
from learner.megatron.checkpoint import load_state, snapshot
from learner.megatron.laps import Laps
from learner.megatron.lora import attach
from learner.megatron.microbatch import MicroBatch, Packer
from learner.megatron.model import Student, build_student, has_transformer_engine
from learner.megatron.objective import Objective, Sums
from learner.megatron.packing import within_budget
from learner.megatron.quiet import quiet
from learner.megatron.totals import agreed_maximum, over_ranks, stats_of, totals_of
from learner.megatron.weights import export_weights, load_weights
from learner.megatron.writer import Writer
from learner.training import Batch, LossFunction, StepStats, TrainerSettings


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a trainer is put together from."""

    architecture: Architecture
    student: Student
    wrapped: DistributedDataParallel
    optimizer: MegatronOptimizer


class MegatronTrainer:
    """Owns the student, its optimizer and this rank's place in the process group. `build` makes one."""

    def __init__(self, settings: TrainerSettings, parts: _Parts, pulse: Pulse) -> None:
        self._settings = settings
        self._pulse = pulse
        self._parts = parts
        self._packer = Packer(
            parts.architecture,
            tensor_parallel=settings.tensor_parallel,
            multiple=settings.tensor_parallel if settings.sequence_parallel else 1,
            context=parallel_state.get_context_parallel_group() if settings.context_parallel > 1 else None,
            masks=not has_transformer_engine(),
            dtype=_dtype(settings),
            device=distributed.device(),
        )
        self._run = get_forward_backward_func()
        self._writer = Writer(timeout_s=settings.timeout_s, pulse=pulse)
        self.steps = 0
        """Optimizer steps done, as saved and loaded with the state."""

    @classmethod
    @quiet()
    def build(cls, settings: TrainerSettings, pulse: Pulse | None = None) -> MegatronTrainer:
        """Join the process group, build the student and fill it from its directory."""
        architecture = read_architecture(settings.student)
        torch.set_num_threads(settings.threads)
        distributed.start(
            tensor_parallel=settings.tensor_parallel,
            pipeline_parallel=settings.pipeline_parallel,
            context_parallel=settings.context_parallel,
            expert_parallel=settings.expert_parallel,
            seed=settings.seed,
            timeout_s=settings.timeout_s,
            join_timeout_s=settings.join_timeout_s,
        )
        try:
            return cls(settings, _assemble(settings, architecture), pulse or Pulse())
        except BaseException:
            distributed.stop()
            raise

    @property
    def data_parallel(self) -> tuple[int, int]:
        """(rank, size): which share of the global batch `step` expects here."""
        return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()

    @quiet()
    def step(self, batch: Batch, loss: LossFunction, lr: float) -> StepStats:
        """Train on this rank's share of a global batch; ArithmeticError when the loss or gradient is not finite."""
        began, laps = time.perf_counter(), Laps(self._pulse)
        groups = within_budget([sample.length for sample in batch], self._settings.token_budget)
        count = agreed_maximum(len(groups))
        groups += [[] for _ in range(count - len(groups))]
        objective = Objective(loss, parallel_state.get_tensor_model_parallel_group(), self._parts.architecture.vocabulary)
        at_loss = self._parts.student.stage.last  # the other stages have no use for what the teachers said
        packed = (self._packer.pack([batch[i] for i in group], targets=at_loss) for group in groups)
        sums = self._gradients(packed, count, objective, laps)
        totals = over_ranks(totals_of(sums) | _counts([] if parallel_state.get_context_parallel_rank() else batch))
        _refuse_unless_finite("loss", totals.get("loss", 0.0), self.steps)
        laps.mark("backward")
        grad_norm = self._update(lr)
        laps.mark("optimizer")
        _refuse_unless_finite("gradient norm", grad_norm, self.steps)
        self.steps += 1
        return stats_of(totals, self.steps, grad_norm, lr, count, time.perf_counter() - began)

    def export(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The student as Hugging Face tensors on the CPU of global rank 0; empty dict elsewhere."""
        return export_weights(
            self._parts.student,
            self._parts.architecture,
            group=parallel_state.get_tensor_model_parallel_group(),
            fused_norms=has_transformer_engine(),
            dtype=dtype,
            stage=self._parts.student.stage,
            pipeline=parallel_state.get_pipeline_model_parallel_group(),
            experts=parallel_state.get_expert_model_parallel_group(),
            first=not parallel_state.get_data_parallel_rank(with_context_parallel=True),
            first_of_experts=not parallel_state.get_expert_data_parallel_rank(),
        )

    @quiet()
    def save(self, directory: Path) -> None:
        """Write model, optimizer, random stream and step count."""
        self.begin_save(directory, copied=False)()

    @quiet()
    def begin_save(self, directory: Path, *, copied: bool = True) -> Callable[[], None]:
        """Copy what `save` writes, and write it in a thread; the call that is returned waits for it, on all ranks."""
        self._writer.wait()
        if dist.get_rank() == 0:
            directory.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        state = snapshot(self._parts.student, self._parts.optimizer, {"steps": self.steps}, copied=copied)
        return self._writer.write(state, directory)

    @quiet()
    def load(self, directory: Path) -> None:
        """Continue exactly where the trainer that saved stood."""
        self.steps = load_state(directory, self._parts.student, self._parts.optimizer)["steps"]

    def close(self) -> None:
        """Leave the process group, once nothing is being written."""
        self._writer.close()
        distributed.stop()

    def _gradients(self, batches: Iterator[MicroBatch], count: int, objective: Objective, laps: Laps) -> list[Sums]:
        """Forward and backward over all micro-batches; gradients are divided by the global number of tokens."""
        student = self._parts.student

        def forward(source: Iterator[MicroBatch], _: Any) -> tuple[torch.Tensor, Any]:
            laps.mark("backward")  # of the micro-batch before
            batch = next(source)
            laps.mark("packing")
            return student.hidden_states(batch), partial(loss, batch)

        def loss(batch: MicroBatch, hidden_RH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Sums]:
            outcome = objective(batch, hidden_RH, student.output_weight)
            laps.mark("forward")
            return outcome

        self._parts.wrapped.zero_grad_buffer()
        sums: list[Sums] = self._run(
            forward_step_func=forward,
            data_iterator=batches,
            model=[self._parts.wrapped],
            num_microbatches=count,
            seq_length=1,  # the micro-batches know their lengths
            micro_batch_size=1,
        )
        return sums

    def _update(self, lr: float) -> float:
        for group in self._parts.optimizer.param_groups:
            group["lr"] = lr
        _, grad_norm, _ = self._parts.optimizer.step()
        return float(grad_norm)


def _counts(batch: Batch) -> dict[str, float]:
    return {
        "samples": len(batch),
        "tokens": sum(sample.trained for sample in batch),
        "processed": sum(sample.length for sample in batch),
    }


def _assemble(settings: TrainerSettings, architecture: Architecture) -> _Parts:
    student, config = build_student(
        architecture,
        settings,
        dtype=_dtype(settings),
        stage_index=parallel_state.get_pipeline_model_parallel_rank(),
        expert_rank=parallel_state.get_expert_model_parallel_rank(),
    )
    student.to(distributed.device())
    load_weights(
        student,
        settings.student,
        architecture,
        group=parallel_state.get_tensor_model_parallel_group(),
        fused_norms=has_transformer_engine(),
        stage=student.stage,
    )
    if settings.lora_rank:
        attach(student, settings, group=parallel_state.get_tensor_model_parallel_group())
    student.train()
    wrapped = DistributedDataParallel(
        config=config,
        ddp_config=DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True),
        module=student,
    )
    return _Parts(architecture, student, wrapped, _optimizer(settings, config, wrapped))


def _optimizer(settings: TrainerSettings, config: TransformerConfig, wrapped: DistributedDataParallel) -> MegatronOptimizer:
    if settings.optimizer_offload and not torch.cuda.is_available():
        raise ConfigError(
            f"learner.optimizer_offload = {settings.optimizer_offload:g} moves state from a GPU's memory to the host's, "
            "and there is no GPU here: set it to 0"
        )
    use_group_step_adamw()
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=0.0,  # every step brings its own
            weight_decay=settings.weight_decay,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            adam_eps=settings.eps,
            clip_grad=settings.max_grad_norm or math.inf,
            bf16=settings.dtype == "bfloat16",
            params_dtype=_dtype(settings),
            use_distributed_optimizer=True,
            optimizer_cpu_offload=settings.optimizer_offload > 0,
            optimizer_offload_fraction=settings.optimizer_offload,
        ),
        [wrapped],
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    config.no_sync_func = wrapped.no_sync
    return optimizer


def _dtype(settings: TrainerSettings) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]


def _refuse_unless_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise ArithmeticError(f"the {what} of step {step} is {value}: resume from the last checkpoint with a lower rate")
