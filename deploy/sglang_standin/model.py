"""The maths: sampling through the torch engine's batch, scoring through the torch teacher's forward pass, over two copies of one model.

Nothing here is safe to call twice at once; Service sees to that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from common.messages import Completion, Ids, Rollout, Sampling, Ticket, Version
from common.sglang.shape import ModelShape, read_shape
from producers.engines.torch.batch import Batch
from producers.engines.torch.forward import ModelForward
from producers.engines.torch.fused import FusedForward, can_fuse
from producers.engines.torch.loader import load_student
from producers.engines.torch.weights import weight_targets
from scorers.teachers.torch.forward import response_scores
from scorers.teachers.torch.loading import CausalModel, load_causal_model
from scorers.teachers.verdict import RawScores


class WrongShapes(Exception):
    """Weights that are not this model's: the real server dies of them."""


class Unreadable(Exception):
    """No weights at all: the real server says so."""


@dataclass(frozen=True, slots=True)
class StandInModel:
    """A loaded directory."""

    directory: Path
    shape: ModelShape
    batch: Batch
    scoring: CausalModel
    targets: tuple[dict[str, torch.Tensor], ...]  # of both copies, by the names that files use

    @torch.inference_mode()
    def score(self, ids: Ids, start: int, top: int) -> RawScores:
        """The tokens behind position `start`."""
        sampling = Ticket(0, 0, "", ids[: start + 1], Sampling(1.0, 1, ()), (), Version(0, 0))
        rest = ids[start + 1 :]
        blank = Completion(rest, np.zeros(len(rest), np.float32), (), "length")
        return response_scores(self.scoring, [Rollout(sampling, blank)], top, self.shape.vocabulary)

    @torch.inference_mode()
    def load(self, directory: Path) -> None:
        """Takes what is there, as the real server does: a part of a checkpoint is taken without a word."""
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise Unreadable(f"Failed to get weights iterator: '{directory}'.")
        for file in files:
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  # no mapping
                        self._copy(name, opened.get_tensor(name))
            except (OSError, SafetensorError) as error:
                raise Unreadable(f"Failed to get weights iterator: {error}.") from None

    def checksums(self) -> dict[str, str]:
        """Of every tensor that it samples with; by another hash than the real server's."""
        tensors = self.targets[0].items()
        return {name: hashlib.sha256(tensor.detach().float().numpy().tobytes()).hexdigest()[:16] for name, tensor in tensors}

    def _copy(self, name: str, tensor: torch.Tensor) -> None:
        for targets in self.targets:
            target = targets.get(name)
            if target is None:
                continue
            if target.shape != tensor.shape:
                raise WrongShapes(name)
            target.copy_(tensor)


def open_model(directory: Path, dtype: str, slots: int) -> StandInModel:
    """Raises ConfigError."""
    torch.set_num_threads(1)
    kind: torch.dtype = getattr(torch, dtype)
    device = torch.device("cpu")
    scoring = load_causal_model(directory, kind, device)
    student = load_student(directory, dtype=kind, device=device)
    forward = FusedForward(student, slots=slots) if can_fuse(student) else ModelForward(student, slots=slots)
    seed = int.from_bytes(np.random.default_rng().bytes(6), "little")  # its draws are nobody else's
    scoring_targets = {f"model.{name}": tensor for name, tensor in weight_targets(scoring.body).items()}
    scoring_targets |= {f"lm_head.{name}": parameter for name, parameter in scoring.head.named_parameters()}
    return StandInModel(
        directory=directory,
        shape=read_shape(directory),
        batch=Batch(forward, slots=slots, seed=seed, device=device),
        scoring=scoring,
        targets=(weight_targets(student.model), scoring_targets),
    )
