"""AdamW in the shape Megatron's DistributedOptimizer checkpoints and loads.

Guarantees: the maths is torch's fused AdamW (decoupled decay, Loshchilov & Hutter 2019). The step count lives in the
parameter group, as in Transformer Engine's FusedAdam, because the DistributedOptimizer cannot load the per-parameter
counts of torch.optim.AdamW. Nothing is replaced where Transformer Engine or Apex bring their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adamw import adamw


class GroupStepAdamW(torch.optim.Optimizer):
    """AdamW with one `step` per parameter group; state per parameter: exp_avg, exp_avg_sq."""

    def __init__(
        self,
        params: Any,  # torch.optim's own parameter-group type
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "no closures"
        for group in self.param_groups:
            if group["params"]:
                group["step"] = int(group.get("step", 0)) + 1
                self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return
        states = [self._state_of(parameter) for parameter in params]
        before = torch.full((len(params),), float(group["step"] - 1), device=params[0].device)
        adamw(
            params,
            [parameter.grad for parameter in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            list(before.unbind()),
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def materialise(self) -> None:
        """Makes the state that the first step would make, so that a checkpoint before it is complete."""
        for group in self.param_groups:
            group.setdefault("step", 0)
            for parameter in group["params"]:
                self._state_of(parameter)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def use_group_step_adamw() -> None:
    """Let Megatron build GroupStepAdamW where it would fall back to torch.optim.AdamW."""
    from megatron.core import optimizer as selection
    from megatron.core.optimizer import distrib_optimizer as distributed

    if distributed.HAVE_APEX_OR_TE:
        return
    selection.Adam = distributed.Adam = GroupStepAdamW
    selection.USING_PYTORCH_OPTIMIZER = False
    distributed.HAVE_APEX_OR_TE = True
    distributed.USING_APEX_OPTIMIZER = True
