"""What every slot has sampled and when it must stop: plain numpy, preallocated, no Python object per token.

Letters: S slots, N the first rows, T longest answer in flight, E stop ids per row, K the most likely ids that are recorded (0 = none).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.messages import Completion
from producers.engines.torch.request import Request
from producers.engines.torch.uniforms import Uniforms

_NO_ID = -1
Tops = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Ids and log-probabilities [N, K]."""


class Answers:
    """Row i belongs to slot i. A row without a request writes into its own first place and never finishes."""

    def __init__(self, *, slots: int, seed: int, tops: int = 0) -> None:
        self._draws = Uniforms(seed)
        self._alive_S = np.zeros(slots, np.int64)
        self._limit_S = np.zeros(slots, np.int64)
        self.count_S = np.zeros(slots, np.int64)
        self._id_ST = np.zeros((slots, 1), np.int32)
        self._logp_ST = np.zeros((slots, 1), np.float32)
        self._uniform_ST = np.zeros((slots, 1), np.float64)
        self._top_id_STK = np.zeros((slots, 1, tops), np.int32)
        self._top_logp_STK = np.zeros((slots, 1, tops), np.float32)
        self._stop_ES = np.full((1, slots), _NO_ID, np.int64)

    def begin(self, request: Request) -> None:
        """Row `request.row` starts an answer."""
        row, limit = request.row, request.limit
        self._widen(limit, len(request.stops))
        ticket = request.ticket
        self._uniform_ST[row, :limit] = self._draws.of(ticket.seq, ticket.attempt, request.evaluation, limit)
        self._stop_ES[:, row] = _NO_ID
        self._stop_ES[: len(request.stops), row] = request.stops
        self._limit_S[row], self._alive_S[row], self.count_S[row] = limit, 1, 0

    def end(self, row: int) -> None:
        """The row carries nothing any more."""
        self._alive_S[row] = self.count_S[row] = 0

    def uniforms(self, index_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[N] numbers for the next token of these rows."""
        uniform_N: npt.NDArray[np.float64] = self._uniform_ST[index_N, self.count_S[index_N]]
        return uniform_N

    def record(
        self, index_N: npt.NDArray[np.int64], id_N: npt.NDArray[np.int64], logp_N: npt.NDArray[np.float32], tops: Tops | None = None
    ) -> npt.NDArray[np.int64]:
        """Notes one token per row, and what was most likely there; returns the rows whose answer is complete with it."""
        count_N, alive_N = self.count_S[index_N], self._alive_S[index_N]
        self._id_ST[index_N, count_N] = id_N
        self._logp_ST[index_N, count_N] = logp_N
        if tops is not None:
            self._top_id_STK[index_N, count_N], self._top_logp_STK[index_N, count_N] = tops
        count_N += alive_N
        self.count_S[index_N] = count_N
        done_N = count_N == self._limit_S[index_N]
        for stop_S in self._stop_ES:
            done_N |= stop_S[index_N] == id_N
        done: npt.NDArray[np.int64] = index_N[done_N & (alive_N == 1)]
        return done

    def completion(self, request: Request) -> Completion:
        """Copies the row out."""
        row = request.row
        count = int(self.count_S[row])
        ids = self._id_ST[row, :count].copy()
        stopped = int(ids[-1]) in request.stops
        recorded = self._top_id_STK.shape[2] > 0
        return Completion(
            response_ids=ids,
            logprobs=self._logp_ST[row, :count].copy(),
            versions=request.spans(count),
            finish_reason="stop" if stopped else "length",
            top_ids=self._top_id_STK[row, :count].copy() if recorded else None,
            top_logprobs=self._top_logp_STK[row, :count].copy() if recorded else None,
        )

    def move(self, source: npt.NDArray[np.int64], target: npt.NDArray[np.int64]) -> None:
        """Rows `source` go on as rows `target`, which are free."""
        rows = (self._alive_S, self._limit_S, self.count_S, self._id_ST, self._logp_ST, self._uniform_ST)
        for state in (*rows, self._top_id_STK, self._top_logp_STK):
            state[target] = state[source]
        self._stop_ES[:, target] = self._stop_ES[:, source]
        self._alive_S[source] = self.count_S[source] = 0

    def _widen(self, tokens: int, stops: int) -> None:
        """Room for longer answers and more stop ids."""
        have = self._id_ST.shape[1]
        if tokens > have:
            more = ((0, 0), (0, max(tokens, have * 3 // 2) - have))
            self._id_ST, self._logp_ST = np.pad(self._id_ST, more), np.pad(self._logp_ST, more)
            self._uniform_ST = np.pad(self._uniform_ST, more)
            self._top_id_STK = np.pad(self._top_id_STK, (*more, (0, 0)))
            self._top_logp_STK = np.pad(self._top_logp_STK, (*more, (0, 0)))
        if stops > len(self._stop_ES):
            self._stop_ES = np.pad(self._stop_ES, ((0, stops - len(self._stop_ES)), (0, 0)), constant_values=_NO_ID)
