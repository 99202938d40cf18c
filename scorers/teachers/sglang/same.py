"""Every server of a teacher holds one model: before it is used, and now and then, each one answers the same few sequences by itself.

The first sound answers are what the others are compared with; a server that gives other ones, or no usable ones, stays out. Before
there are any, a server that answers badly is let in: the start-up probe ends the scorer with the reason.
"""

from __future__ import annotations

import uuid

import numpy as np

from common.errors import Rejected
from common.messages import Ids, TeacherScore
from common.sglang.reply import BadReply, parse_scores
from common.sglang.request import GenerateRequest
from common.sglang.server import Lost, ModelInfo, Refused, Server
from common.sglang.shape import ModelShape
from scorers.examination import difference
from scorers.teachers.verdict import RawScores, judge

_SEQUENCES, _PROMPT, _RESPONSE = 4, 4, 12

Answers = list[TeacherScore | Rejected]


class SameModel:
    """`prepare` of a teacher's pool."""

    def __init__(self, *, name: str, shape: ModelShape, digest: str, vocabulary: int, deadline_s: float) -> None:
        self._name = name
        self._shape = shape
        self._digest = digest
        self._deadline_s = deadline_s
        length = min(_PROMPT + _RESPONSE, shape.context - 1)
        ids: Ids = np.random.default_rng(0).integers(0, min(vocabulary, shape.vocabulary), (_SEQUENCES, length), np.int32)
        self._asked = [GenerateRequest(row, 0, logprob_start=min(_PROMPT, length - 1) - 1, top=1) for row in ids]
        self._first: tuple[str, Answers] | None = None

    async def prepare(self, server: Server, _info: ModelInfo) -> None:
        """Raises CallFailed where the server is not to be used."""
        answers = [await self._answer(server, request) for request in self._asked]
        if self._first is None:
            if not any(isinstance(answer, Rejected) for answer in answers):
                self._first = server.url, answers
            return
        url, first = self._first
        wrong = next(filter(None, (difference(self._name, *pair) for pair in zip(first, answers, strict=True))), "")
        if wrong:
            raise Lost(f"{server.url}: {wrong} (then at {url})")

    async def _answer(self, server: Server, request: GenerateRequest) -> TeacherScore | Rejected:
        body, most = request.body(uuid.uuid4().hex), request.most_reply_bytes
        try:
            reply = await server.call("POST", "/generate", body, deadline_s=self._deadline_s, most_bytes=most)
            scored = parse_scores(reply, request, self._shape.vocabulary)
        except (Refused, Lost, BadReply) as error:
            return Rejected(f"teacher {self._name}: {error}")
        raw = RawScores(scored.logprobs, scored.top_logprobs[:, 0], self._shape.vocabulary)
        return judge(self._name, self._digest, raw, [request.tokens])[0]
