"""What the learner's loop, the losses and the trainer say to one another.

Guarantees: everything here is frozen; a loss sees only tokens that train, in the order of the micro-batch, and knows
nothing of packing, ranks or Megatron; the trainer turns per-token losses into the exact mean over all trained tokens of
the global batch.

Shapes: P prompt tokens, T response tokens of one sample, K teacher's top-k, R trained response tokens of a micro-batch.
Log-probabilities are natural logarithms at temperature 1.
"""

# ruff: noqa: N815 - tensor names carry shape letters
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from common.messages import Floats, Ids, Mask


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """What one teacher said of a response; `weight` is its share of the sample's loss (a sample's shares sum to 1)."""

    teacher: str
    weight: float
    logprobs_T: Floats
    top_ids_TK: Ids | None = None
    top_logprobs_TK: Floats | None = None


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One scored rollout as the trainer needs it."""

    seq: int
    prompt_ids: Ids  # [P]
    response_ids: Ids  # [T]
    behaviour_T: Floats  # the sampler's log-probabilities
    mask_T: Mask | npt.NDArray[np.bool_]  # 1 = this token trains
    lag_T: Ids  # staleness of each token, in steps
    targets: tuple[TeacherTargets, ...]

    @property
    def length(self) -> int:
        """Prompt and response tokens."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def trained(self) -> int:
        """Tokens that count in the loss."""
        return int(np.count_nonzero(self.mask_T))


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One teacher's view of R trained tokens. Only the two `student_` tensors carry gradients; all floats are float32.

    `student_top_RK` holds the log-probabilities under the current student of the teacher's own top-k ids; both
    `_top_RK` are None when the teacher gave none.
    """

    student_logp_R: torch.Tensor
    teacher_logp_R: torch.Tensor
    behaviour_R: torch.Tensor
    lag_R: torch.Tensor  # int32
    position_R: torch.Tensor  # int32, index in the response
    student_top_RK: torch.Tensor | None = None
    teacher_top_RK: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Per-token loss (differentiable) and per-token figures to be averaged over tokens (detached), e.g. "kl"."""

    loss_R: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


LossFunction = Callable[[LossInputs], LossOutput]


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """Everything a trainer is built from; `learner.ranks.settings` resolves it from RunConfig."""

    student: Path  # a Hugging Face model directory
    dtype: Literal["float32", "bfloat16"]
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float
    token_budget: int  # prompt and response tokens of a micro-batch on one rank
    seed: int
    recompute: bool = False  # recompute activations in backward instead of keeping them
    optimizer_offload: float = 0.0  # share of the optimizer's state in the host's memory
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    sequence_parallel: bool = False
    lora_rank: int = 0  # 0: every parameter is trained
    lora_alpha: float = 1.0
    lora_targets: tuple[str, ...] = ()  # linear layers by Megatron's names
    threads: int = 1  # torch threads of this process
    timeout_s: float = 600.0  # of a collective: a rank that waits longer fails
    join_timeout_s: float = 600.0  # for all ranks to come


@dataclass(frozen=True, slots=True)
class StepStats:
    """One optimizer step, the same on every rank: means are over all trained tokens of the global batch."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    samples: int
    tokens: int  # trained tokens
    processed: int  # prompt and response tokens that went through the model
    micro_batches: int  # on each rank
    metrics: Mapping[str, float]
    kl_by_teacher: Mapping[str, float]
    seconds: float
    kl_by_position: Mapping[str, float] = field(default_factory=dict)  # first position of the bucket -> mean


Batch = Sequence[TrainingSample]
