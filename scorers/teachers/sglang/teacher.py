"""The teacher on SGLang servers: prompt log-probabilities at temperature 1 over the full vocabulary, whatever else is set.

A response that begins after P prompt tokens is scored from position P − 1 on: the entry there is null and dropped, and the prompt before it
comes out of the server's prefix cache. Rollouts of one call go out in the order of their prompts, so that equal prompts meet there.
R response tokens, K top ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from common.errors import Rejected
from common.messages import Floats, Ids, Rollout, TeacherScore
from common.sglang.pool import ServerPool
from common.sglang.reply import BadReply, Scored, parse_scores, tells_flat
from common.sglang.request import GenerateRequest
from common.sglang.shape import ModelShape
from scorers.teachers.verdict import RawScores, judge

_PADDING_ROWS = 8  # of the likeliest ids, so many may be ids that the student has not


class SglangTeacher:
    """Scores through one pool."""

    def __init__(self, *, name: str, pool: ServerPool, shape: ModelShape, digest: str, top_k: int, top_vocabulary: int) -> None:
        self._name = name
        self._pool = pool
        self._shape = shape
        self._digest = digest
        self._top_vocabulary = min(top_vocabulary, shape.vocabulary)
        self._top_k = min(top_k, self._top_vocabulary)
        spare = _PADDING_ROWS if shape.vocabulary > self._top_vocabulary else 0
        self._asked = min(max(1, self._top_k) + spare, shape.vocabulary)  # at least one: the peak tells a misloaded teacher

    @property
    def digest(self) -> str:
        """See Teacher."""
        return self._digest

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScore | Rejected]:
        """See Teacher."""
        order = sorted(range(len(rollouts)), key=lambda index: rollouts[index].ticket.prompt_ids.tobytes())
        async with asyncio.TaskGroup() as tasks:
            asked = {index: tasks.create_task(self._score(rollouts[index]), name=f"score {index}") for index in order}
        return [asked[index].result() for index in range(len(rollouts))]

    async def part_complaint(self) -> str:
        """See Teacher. Every server in rotation is asked."""
        return await self._pool.prepare_again()

    async def aclose(self) -> None:
        """See Teacher."""
        await self._pool.aclose()

    async def _score(self, rollout: Rollout) -> TeacherScore | Rejected:
        prompt, response = rollout.ticket.prompt_ids, rollout.completion.response_ids
        if not len(prompt) or not len(response):
            return Rejected(f"a {'response' if len(prompt) else 'prompt'} without tokens cannot be scored")
        request = GenerateRequest(np.concatenate((prompt, response)), 0, logprob_start=len(prompt) - 1, top=self._asked)
        try:
            server, reply = await self._pool.ask(request)
            raw = self._raw(parse_scores(reply, request, self._shape.vocabulary))
            server.saw("flat top ids", tells_flat(reply))
        except BadReply as error:
            return Rejected(f"teacher {self._name} at {server.url}: {error}")
        except Rejected as error:
            return error
        return judge(self._name, self._digest, raw, [len(response)])[0]

    def _raw(self, scored: Scored) -> RawScores:
        peaks = scored.top_logprobs[:, 0]
        if not self._top_k:
            return RawScores(scored.logprobs, peaks, self._shape.vocabulary)
        ids, tops = self._expressible(scored)
        return RawScores(scored.logprobs, peaks, self._shape.vocabulary, ids, tops)

    def _expressible(self, scored: Scored) -> tuple[Ids, Floats]:
        """The first K that are ids of the student."""
        if self._asked == self._top_k:
            return scored.top_ids, scored.top_logprobs
        foreign = scored.top_ids >= self._top_vocabulary
        first = np.argsort(foreign, axis=1, kind="stable")[:, : self._top_k]
        if np.take_along_axis(foreign, first, 1).any():
            raise BadReply(f"more than {_PADDING_ROWS} of its likeliest ids are none of the student's")
        return np.take_along_axis(scored.top_ids, first, 1), np.take_along_axis(scored.top_logprobs, first, 1)
