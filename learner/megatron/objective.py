"""From hidden states to the loss of a micro-batch: log-probabilities, the loss function per teacher, and what to report.

Guarantees: the loss is the SUM over trained tokens of Σ_teachers weight * loss, with the token count beside it, so that
Megatron divides once by the tokens of the whole global batch; sums for reports stay on the device until the step ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from learner.megatron.logprobs import chosen_logprobs
from learner.megatron.microbatch import MicroBatch, TeacherView
from learner.training import LossFunction, LossInputs, LossOutput

Sums = Mapping[str, torch.Tensor]  # "loss", "metric:NAME", "kl:TEACHER", "tokens:TEACHER", "kl_from:POSITION", … -> zero-dimensional

POSITIONS = (0, 16, 64, 256, 1024, 4096)
"""Where the buckets of the KL by position begin."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The user's loss on one model's output weight."""

    loss: LossFunction
    group: dist.ProcessGroup  # tensor parallel
    vocabulary: int  # ids that exist

    def __call__(self, batch: MicroBatch, hidden_RH: torch.Tensor, weight_VH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Sums]:
        """Summed loss, trained tokens (int32), sums to report. An empty micro-batch has a loss of 0 that depends on nothing."""
        tokens = torch.tensor(batch.trained, dtype=torch.int32, device=hidden_RH.device)
        if not batch.trained:
            return hidden_RH.sum() * 0.0, tokens, {}
        logp_RM = chosen_logprobs(hidden_RH, weight_VH, batch.ids_RM, self.group, self.vocabulary)
        total = torch.zeros((), device=hidden_RH.device)
        sums: dict[str, torch.Tensor] = {}
        for view in batch.views:
            output = self.loss(_inputs(batch, view, logp_RM))
            total = total + torch.dot(output.loss_R, view.weight_Q)
            _report(sums, output, view, batch.teachers)
            if "kl" in output.metrics:
                _report_positions(sums, output.metrics["kl"], batch.position_R if view.rows_Q is None else batch.position_R[view.rows_Q])
        return total, tokens, {"loss": total.detach(), **sums}


def _inputs(batch: MicroBatch, view: TeacherView, logp_RM: torch.Tensor) -> LossInputs:
    rows = view.rows_Q
    own_QM, behaviour_Q, lag_Q, position_Q = (
        tensor if rows is None else tensor[rows] for tensor in (logp_RM, batch.behaviour_R, batch.lag_R, batch.position_R)
    )
    return LossInputs(
        student_logp_R=own_QM[:, 0],
        teacher_logp_R=view.logp_Q,
        behaviour_R=behaviour_Q,
        lag_R=lag_Q,
        position_R=position_Q,
        student_top_RK=None if view.columns is None else own_QM[:, view.columns],
        teacher_top_RK=view.top_logp_QK,
    )


def _report(sums: dict[str, torch.Tensor], output: LossOutput, view: TeacherView, teachers: tuple[str, ...]) -> None:
    for name, metric_Q in output.metrics.items():
        _add(sums, f"metric:{name}", torch.dot(metric_Q, view.weight_Q))
    counted = {"tokens": torch.ones_like(view.logp_Q)} | ({"kl": output.metrics["kl"]} if "kl" in output.metrics else {})
    for name, figure_Q in counted.items():
        by_teacher = figure_Q.new_zeros(len(teachers)).index_add_(0, view.teacher_Q, figure_Q)
        for teacher, figure in zip(teachers, by_teacher.unbind(), strict=True):
            _add(sums, f"{name}:{teacher}", figure)


def _report_positions(sums: dict[str, torch.Tensor], kl_Q: torch.Tensor, position_Q: torch.Tensor) -> None:
    bucket_Q = torch.bucketize(position_Q, torch.tensor(POSITIONS[1:], device=position_Q.device, dtype=position_Q.dtype), right=True)
    for name, figure_Q in (("kl_from", kl_Q), ("tokens_from", torch.ones_like(kl_Q))):
        by_bucket = figure_Q.new_zeros(len(POSITIONS)).index_add_(0, bucket_Q, figure_Q)
        for start, figure in zip(POSITIONS, by_bucket.unbind(), strict=True):
            _add(sums, f"{name}:{start}", figure)


def _add(sums: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
