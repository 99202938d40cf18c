"""Low-rank adapters (LoRA, Hu et al. 2021) on the frozen linear layers of a student: y = W x + alpha / rank * B A x.

Guarantees: only A and B are trained, everything else has neither gradient nor optimizer state; at the start B = 0, so that the student is
the loaded model, and A is the same for a seed in every layout; `merged` is the weight of the model without adapters that computes the same.

Tensor-parallel ranks divide B where they divide W by rows (linear_qkv, linear_fc1) and A where they divide it by columns (linear_proj,
linear_fc2); the other of the two is the same on all of them. They meet in A x, [N, rank], alone: its sum (forward by columns, backward
by rows) makes the gradient of the replicated one whole on every rank. With sequence parallelism each rank has its own tokens there, and
Megatron adds up the gradients of the replicated one as it does those of norms.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from common.errors import ConfigError
from learner.megatron.model import Student
from learner.training import TrainerSettings

_BY_COLUMNS = ("linear_proj", "linear_fc2")
_SUFFIX = "_lora"


class Adapter(torch.nn.Module):
    """A and B of one linear layer, this rank's share."""

    def __init__(self, target: str, linear: Any, settings: TrainerSettings, whole_A: torch.Tensor, *, group: dist.ProcessGroup) -> None:
        super().__init__()
        weight: torch.Tensor = linear.weight
        self._by_columns, self._gated = target in _BY_COLUMNS, target == "linear_fc1"
        self._group = group
        self._sequence_parallel = settings.sequence_parallel
        self._scale = settings.lora_alpha / settings.lora_rank
        self._epsilon: float = linear.config.layernorm_epsilon
        a = whole_A.chunk(group.size(), 1)[group.rank()] if self._by_columns else whole_A
        self.a = torch.nn.Parameter(a.to(weight).contiguous())
        self.b = torch.nn.Parameter(weight.new_zeros(weight.shape[0], settings.lora_rank))
        divided, replicated, dimension = (self.a, self.b, 1) if self._by_columns else (self.b, self.a, 0)
        set_tensor_model_parallel_attributes(divided, is_parallel=True, dim=dimension, stride=1)
        replicated.sequence_parallel = settings.sequence_parallel  # type: ignore[attr-defined]

    def after(self, linear: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
        """Forward hook of the linear layer: adds what the adapter says of the same input."""
        hidden = inputs[0]
        if hasattr(linear, "layer_norm_weight"):  # Transformer Engine's fused layer norms its input itself
            hidden = F.rms_norm(hidden, hidden.shape[-1:], linear.layer_norm_weight, self._epsilon)
        return output[0] + self._scale * F.linear(self._meet(F.linear(hidden, self.a)), self.b), output[1]

    def _meet(self, low: torch.Tensor) -> torch.Tensor:
        if self._sequence_parallel:
            meet = reduce_scatter_to_sequence_parallel_region if self._by_columns else gather_from_sequence_parallel_region
        else:
            meet = reduce_from_tensor_model_parallel_region if self._by_columns else copy_to_tensor_model_parallel_region
        met: torch.Tensor = meet(low)
        return met

    @torch.no_grad()
    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """This rank's share of the merged weight, in float32."""
        return weight.float().addmm(self.b.float(), self.a.float(), alpha=self._scale)

    def sharded_state_dict(self, prefix: str, sharded_offsets: tuple[Any, ...], metadata: dict[str, Any]) -> dict[str, Any]:
        """For Megatron's checkpoints, which another layout may load."""
        state: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True),
            prefix,
            {"a": 1} if self._by_columns else {"b": 0},
            sharded_offsets,
            tp_group=self._group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self._gated:  # rows of the gate, then of the up projection, as in the weight
            state[f"{prefix}b"] = apply_swiglu_sharded_factory(state[f"{prefix}b"], sharded_offsets)
        return state


def attach(student: Student, settings: TrainerSettings, *, group: dist.ProcessGroup) -> None:
    """Freeze the loaded student and put adapters on its targets; ConfigError for a student with experts."""
    if student.config.num_moe_experts:
        raise ConfigError("adapters for a student with experts are not there: set learner.lora_rank = 0 to train it whole")
    student.requires_grad_(False)
    for place, layer in enumerate(student.decoder.layers):
        for parent, target in _targets(layer, settings):
            linear = getattr(parent, target)
            columns = linear.weight.shape[1] * (group.size() if target in _BY_COLUMNS else 1)
            whole_A = _drawn(settings.lora_rank, columns, f"{settings.seed}/{student.stage.layers[place]}/{target}")
            adapter = Adapter(target, linear, settings, whole_A, group=group)
            parent.add_module(target + _SUFFIX, adapter)
            linear.register_forward_hook(adapter.after)
    if settings.recompute and student.stage.first:  # recomputation gives gradients only where the input of the layers has one
        student.embedding.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())


def _targets(layer: Any, settings: TrainerSettings) -> Iterator[tuple[Any, str]]:
    for target in settings.lora_targets:
        yield (layer.self_attention if hasattr(layer.self_attention, target) else layer.mlp), target


def _drawn(rank: int, columns: int, name: str) -> torch.Tensor:
    """Kaiming uniform, as PEFT draws A: within 1 / sqrt(columns)."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))
    return torch.nn.init.kaiming_uniform_(torch.empty(rank, columns), a=math.sqrt(5), generator=generator)


def merged_weights(model: torch.nn.Module) -> dict[str, Any]:
    """Of every weight with an adapter: a call that makes the merged one."""
    adapters = {name.removesuffix(_SUFFIX): module for name, module in model.named_modules() if isinstance(module, Adapter)}
    return {f"{name}.weight": partial(adapter.merged, model.get_parameter(f"{name}.weight")) for name, adapter in adapters.items()}
