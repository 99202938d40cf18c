"""What a step adds up: over micro-batches, data-parallel ranks and from the last stage of the pipeline to the others.

Guarantee: every rank ends with the same numbers, bit for bit, added in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from learner.megatron import distributed
from learner.megatron.objective import Sums
from learner.training import StepStats


def agreed_maximum(count: int) -> int:
    """The largest count of any data-parallel rank, at least one: all ranks run as many micro-batches."""
    group = parallel_state.get_data_parallel_group()
    if group.size() == 1:
        return max(1, count)
    agreed = torch.tensor([max(1, count)], dtype=torch.int64, device=distributed.device())
    dist.all_reduce(agreed, dist.ReduceOp.MAX, group=group)
    return int(agreed.item())


def totals_of(sums: Sequence[Sums]) -> dict[str, float]:
    """Add the micro-batches up, with one copy from the device."""
    named = [(name, value) for micro_batch in sums for name, value in micro_batch.items()]
    totals: dict[str, float] = {}
    values = torch.stack([value for _, value in named]).tolist() if named else []
    for (name, _), value in zip(named, values, strict=True):
        totals[name] = totals.get(name, 0.0) + value
    return totals


def over_ranks(totals: dict[str, float]) -> dict[str, float]:
    """Add the data- and context-parallel ranks of the last stage up, in rank order, so that all ranks find the same sums."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size() > 1:
        everyone: list[dict[str, float]] = [{} for _ in range(group.size())]
        dist.all_gather_object(everyone, totals, group=group)
        names = sorted({name for rank in everyone for name in rank})
        totals = {name: sum(rank.get(name, 0.0) for rank in everyone) for name in names}
    return _of_last_stage(totals)


def stats_of(totals: dict[str, float], step: int, grad_norm: float, lr: float, micro_batches: int, seconds: float) -> StepStats:
    """The figures of a step whose sums over all ranks are `totals`."""
    tokens = max(1.0, totals["tokens"])
    by_kind: dict[str, dict[str, float]] = {"metric": {}, "kl": {}, "tokens": {}, "kl_from": {}, "tokens_from": {}}
    for name, value in totals.items():
        kind, _, subject = name.partition(":")
        if subject:
            by_kind[kind][subject] = value
    return StepStats(
        step=step,
        loss=totals.get("loss", 0.0) / tokens,
        grad_norm=grad_norm,
        lr=lr,
        samples=int(totals["samples"]),
        tokens=int(totals["tokens"]),
        processed=int(totals["processed"]),
        micro_batches=micro_batches,
        metrics={name: value / tokens for name, value in by_kind["metric"].items()},
        kl_by_teacher={name: value / count for name, value in by_kind["kl"].items() if (count := by_kind["tokens"][name])},
        seconds=seconds,
        kl_by_position={name: value / count for name, value in by_kind["kl_from"].items() if (count := by_kind["tokens_from"][name])},
    )


def _of_last_stage(totals: dict[str, float]) -> dict[str, float]:
    """What the last stage of the pipeline found, where the losses are."""
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    if pipeline.size() == 1:
        return totals
    told = [totals]
    dist.broadcast_object_list(told, group=pipeline, group_src=pipeline.size() - 1)
    return told[0]
