"""The Engine on SGLang servers.

Behaviour log-probabilities are those of temperature 1 over the full vocabulary, or the ticket is refused: at any other setting a server
reports what the learner cannot compute. Every token carries the version that its span names; where a server names none, or one that only
another producer has put there, the oldest that any server in rotation may have had when the request was sent, marked inexact. Weights that
are no producer's count as those before the run, and the server leaves rotation until it has the right ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import Rejected
from common.messages import Completion, Span, Ticket, Version, WeightManifest
from common.sglang.pool import ServerPool
from common.sglang.reply import BadReply, Sampled, parse_sampled
from common.sglang.request import GenerateRequest
from common.sglang.server import Server
from common.sglang.shape import ModelShape
from producers.engines.sglang.layout import Layout, check_layout, layout_of
from producers.engines.sglang.target import named_by, target_of
from producers.engines.sglang.weights import PoolWeights

_MOST_ABORTS = 8  # somebody else pauses the servers or aborts on them


class SglangEngine:
    """Samples through one pool."""

    def __init__(self, *, pool: ServerPool, weights: PoolWeights, shape: ModelShape, layout: Layout, slots: int) -> None:
        self._pool = pool
        self._weights = weights
        self._shape = shape
        self._layout = layout
        self._slots = slots
        self._version = Version(0, 0)
        self._pending: set[asyncio.Task[Any]] = set()

    @property
    def version(self) -> Version:
        """Of every server in rotation."""
        return self._version

    @property
    def wanted(self) -> int:
        """See Engine."""
        return self._slots - len(self._pending)

    async def generate(self, ticket: Ticket) -> Completion:
        """See Engine."""
        task = asyncio.current_task()
        assert task is not None
        self._pending.add(task)
        try:
            return await self._generate(ticket)
        finally:
            self._pending.discard(task)

    async def update_weights(self, manifest: WeightManifest, directory: Path) -> None:
        """See Engine. Raises WeightsError where the files are not the student's full weights, or no server took them."""
        check_layout(await asyncio.to_thread(layout_of, directory), self._layout, directory)
        await self._weights.go_over(self._pool, target_of(manifest, directory))
        self._version = manifest.version

    async def aclose(self) -> None:
        """See Engine."""
        for task in [*self._pending]:
            task.cancel()
        await self._pool.aclose()

    async def _generate(self, ticket: Ticket) -> Completion:
        request = request_of(ticket, self._shape)
        for _ in range(_MOST_ABORTS):
            oldest = self._weights.oldest.version
            server, reply = await self._pool.ask(request)
            try:
                sampled = parse_sampled(reply, request, self._shape.vocabulary)
            except BadReply as error:
                raise Rejected(f"{server.url}: {error}") from None
            if sampled.finish != "abort":
                server.saw("versions per token", bool(sampled.spans))
                self._check_labels(server, sampled)
                return Completion(sampled.ids, sampled.logprobs, self._spans(sampled, oldest), sampled.finish)
        raise Rejected(f"{server.url} aborted it {_MOST_ABORTS} times: somebody else aborts requests on this server")

    def _check_labels(self, server: Server, sampled: Sampled) -> None:
        """A server that was started anew between two requests is up, with the weights of its start."""
        strange = [label for label, _ in sampled.spans if named_by(label) is None]
        if strange:
            self._pool.take_out(server, f"it samples from weights {strange[0][:80]!r}, which no producer put there")

    def _spans(self, sampled: Sampled, oldest: Version) -> tuple[Span, ...]:
        named = sampled.spans or (("", len(sampled.ids)),)
        known = self._weights.labels
        spans = [Span(*(known.get(label) or _at_worst(label, oldest)), tokens, exact=label in known) for label, tokens in named]
        return tuple(_merged(spans))


def _at_worst(label: str, oldest: Version) -> Version:
    """Of weights that this process did not put on a server that had `oldest` or newer ones."""
    return min(oldest, named_by(label) or Version(0, 0)) if label else oldest


def request_of(ticket: Ticket, shape: ModelShape) -> GenerateRequest:
    """Raises Rejected where the answer could not be trained on. Evaluations are sampled as they wish: nobody trains on them."""
    wish = ticket.sampling
    if "evaluation" not in ticket.metadata and (wish.temperature != 1 or wish.top_p < 1 or wish.top_k):
        raise Rejected(
            f"temperature {wish.temperature}, top_p {wish.top_p}, top_k {wish.top_k}: servers give the log-probabilities that training "
            "needs at temperature 1 over the full vocabulary only"
        )
    stops = tuple(sorted({*wish.stop_token_ids, *shape.stops}))
    return GenerateRequest(ticket.prompt_ids, wish.max_new_tokens, wish.temperature, wish.top_p, wish.top_k, stops)


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Neighbours of one version as one."""
    merged: list[Span] = []
    for span in spans:
        if merged and (merged[-1].term, merged[-1].step, merged[-1].exact) == (span.term, span.step, span.exact):
            merged[-1] = merged[-1]._replace(tokens=merged[-1].tokens + span.tokens)
        else:
            merged.append(span)
    return merged
