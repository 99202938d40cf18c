"""The requests in flight: `join`, then `step` = forward → draw → record → release. Pure maths, called from one thread.

Slots are rows of one batch. A step decodes the rows up to the last occupied one; when a quarter of those is free and nobody joins, the
last rows move into the holes. `fixed` (deterministic runs) keeps every shape constant instead - all slots, all columns, each prompt
prefilled alone - so that a sample's numbers do not depend on what else is in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.messages import Completion, Version
from producers.engines.torch import sampler
from producers.engines.torch.answers import Answers, Tops
from producers.engines.torch.forward import Forward
from producers.engines.torch.request import Request
from producers.engines.torch.sampler import Shape
from producers.engines.torch.shapes import Shapes

_PREFILL_TOKENS = 16384  # padded prompt tokens of one forward pass
Rows = npt.NDArray[np.int64]
Finished = list[tuple[Request, Completion]]


class Batch:
    """`columns` > 0 makes the shapes fixed, for prompt + answer of at most so many tokens; `tops`: how many of the likeliest ids
    are recorded."""

    def __init__(self, forward: Forward, *, slots: int, seed: int, device: torch.device, columns: int = 0, tops: int = 0) -> None:
        self._forward = forward
        self._answers = Answers(slots=slots, seed=seed, tops=tops)
        self._tops = tops
        self._device = device
        self._slots = slots
        self._fixed = columns > 0
        self._requests: dict[int, Request] = {}
        self._free = list(range(slots - 1, -1, -1))  # lowest row last
        self._token_S = torch.zeros(slots, dtype=torch.int64, device=device)
        self._prompt_S = np.zeros(slots, np.int64)
        self._shapes = Shapes(slots=slots, device=device)
        self._row_S = np.arange(slots)
        forward.cache.reserve(columns)

    @property
    def active(self) -> int:
        """Requests in flight."""
        return len(self._requests)

    @property
    def free(self) -> int:
        """Slots without one."""
        return len(self._free)

    def join(self, newcomers: Sequence[Request], version: Version) -> Finished:
        """Prefills and draws the first token of each."""
        if not newcomers:
            return []
        need = max(request.prompt_tokens + request.limit for request in newcomers)
        self._forward.cache.reserve(need, empty=not self._requests and not self._fixed)
        for request in newcomers:
            request.row = self._free.pop()
            request.begins(version, 0)
            self._requests[request.row] = request
            self._prompt_S[request.row] = request.prompt_tokens
            self._answers.begin(request)
            self._shapes.begin(request.row, request.ticket.sampling)
        finished: Finished = []
        for group in _groups(newcomers, 1 if self._fixed else _PREFILL_TOKENS):
            finished += self._prefill(group)
        return finished

    def step(self) -> Finished:
        """One token for everybody."""
        n = self._slots if self._fixed else max(self._requests) + 1
        reach = self._forward.cache.columns if self._fixed else int((self._prompt_S[:n] + self._answers.count_S[:n]).max())
        return self._draw(self._row_S[:n], self._forward.decode(self._token_S[:n], reach))

    def compact(self) -> None:
        """Closes the holes when they are a quarter of the rows that are decoded."""
        active = self.active
        if self._fixed or not active or 4 * active > 3 * (max(self._requests) + 1):
            return
        source = np.array(sorted(row for row in self._requests if row >= active))
        target = np.array(sorted(row for row in self._free if row < active))
        reach = int((self._prompt_S + self._answers.count_S).max())
        source_M, target_M = self._tensor(source), self._tensor(target)
        self._forward.cache.move(source_M, target_M, reach)
        self._token_S[target_M] = self._token_S[source_M]
        self._answers.move(source, target)
        self._shapes.move(source, target)
        self._prompt_S[target], self._prompt_S[source] = self._prompt_S[source], 0
        for old, new in zip(source.tolist(), target.tolist(), strict=True):
            request = self._requests[new] = self._requests.pop(old)
            request.row = new
        self._free = sorted(set(range(self._slots)) - self._requests.keys(), reverse=True)

    def leave(self, request: Request) -> None:
        """Nobody wants its answer any more."""
        if self._requests.get(request.row) is request:
            self._release([request.row])

    def so_far(self, request: Request) -> Completion:
        """What a request in flight has sampled up to now; its reason to finish means nothing yet."""
        return self._answers.completion(request)

    def swapped(self, version: Version) -> None:
        """What is sampled from now on comes from `version`; keys and values stay (docs/adr/0001)."""
        for row, request in self._requests.items():
            request.begins(version, int(self._answers.count_S[row]))

    def _prefill(self, group: Sequence[Request]) -> Finished:
        longest = max(request.prompt_tokens for request in group)
        ids = np.zeros((len(group), longest), np.int64)
        for line, request in zip(ids, group, strict=True):
            line[: request.prompt_tokens] = request.ticket.prompt_ids
        index = np.array([request.row for request in group])
        rows_M, lengths_M = self._tensor(index), self._tensor(self._prompt_S[index])
        return self._draw(index, self._forward.prefill(self._tensor(ids), lengths_M, rows_M))

    def _draw(self, index_N: Rows, logits_NV: Tensor) -> Finished:
        """The next token of these rows, and who is done with it."""
        uniform_N = self._tensor(self._answers.uniforms(index_N))
        shape = self._shapes.of(index_N)
        id_N, logp_N = sampler.draw(logits_NV, uniform_N, shape)
        self._token_S[self._tensor(index_N)] = id_N
        done = self._answers.record(index_N, id_N.cpu().numpy(), logp_N.cpu().numpy(), self._likeliest(logits_NV, shape)).tolist()
        finished = [(self._requests[row], self._answers.completion(self._requests[row])) for row in done]
        if done:
            self._release(done)
        return finished

    def _likeliest(self, logits_NV: Tensor, shape: Shape) -> Tops | None:
        if not self._tops:
            return None
        id_NK, logp_NK = sampler.likeliest(logits_NV, shape, self._tops)
        return id_NK.cpu().numpy(), logp_NK.cpu().numpy()

    def _release(self, rows: list[int]) -> None:
        self._forward.cache.release(torch.tensor(rows, device=self._device))
        for row in rows:
            del self._requests[row]
            self._answers.end(row)
            self._shapes.end(row)
        self._prompt_S[rows] = 0
        self._free = sorted([*self._free, *rows], reverse=True)

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _groups(newcomers: Sequence[Request], budget: int) -> Iterator[list[Request]]:
    """Sorted by length, so many together that their padded prompts stay within the budget (one at least)."""
    group: list[Request] = []
    for request in sorted(newcomers, key=lambda each: each.prompt_tokens):
        if group and (len(group) + 1) * request.prompt_tokens > budget:
            yield group
            group = []
        group.append(request)
    yield group
