"""What the stand-in does with requests over time: queue, decode, pause, abort, change of weights.

One task computes, one step at a time in a thread, under `_maths`; everything else happens between two steps. As in the real server: while
paused nothing is computed and new requests wait without a word; `abort` matches request ids by their beginning; a change of weights without
a pause waits until what is in flight has come to its end.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # JSON

import numpy as np
import torch

from common.messages import Completion, Sampling, Ticket, Version
from deploy.sglang_standin.asked import Asked, Declined
from deploy.sglang_standin.model import StandInModel, Unreadable
from deploy.sglang_standin.replies import prompt_part, reply_of
from producers.engines.torch.batch import Finished
from producers.engines.torch.request import Request


class QueueFull(Exception):
    """503."""


@dataclass(slots=True, eq=False)
class Job:
    """A request that samples. What it has so far survives being sent back to the queue."""

    asked: Asked
    done: asyncio.Future[str]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)  # number of the weights, tokens
    retractions: int = 0
    request: Request | None = None  # while it decodes

    def take(self, completion: Completion) -> None:
        """More tokens of it."""
        self.ids += completion.response_ids.tolist()
        self.logprobs += completion.logprobs.tolist()
        self.spans += [(span.step, span.tokens) for span in completion.versions]
        self.request = None


class Service:
    """Serves one model."""

    def __init__(self, *, model: StandInModel, weight_version: str, most_queued: int = 0) -> None:
        self.model = model
        self.path = str(model.directory)
        self.weight_version = weight_version
        self.paused = False
        self._labels = [weight_version]  # by number of the weights
        self._most_queued = most_queued
        self._jobs: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._tickets = itertools.count()
        self._maths = asyncio.Lock()
        self._changing = asyncio.Lock()  # while it is held nobody joins
        self._work = asyncio.Event()
        self._drained = asyncio.Event()
        self._running = asyncio.Event()
        self._running.set()

    @property
    def decoding(self) -> int:
        """Requests in flight."""
        return sum(job.request is not None for job in self._jobs.values())

    async def run(self) -> None:
        """Computes for ever."""
        while True:
            await self._work.wait()
            await self._running.wait()
            async with self._maths:
                if self.paused:
                    continue
                newcomers = self._newcomers()
                owners = {id(job.request): job for job in self._jobs.values() if job.request}
                for request, completion in await asyncio.to_thread(self._step, newcomers):
                    job = owners[id(request)]
                    job.take(completion)
                    _end(job, completion.finish_reason)
            self._tell()

    async def generate(self, asked: Asked) -> dict[str, Any]:
        """The reply. Raises Declined, QueueFull."""
        if asked.rid in self._jobs:
            raise Declined({"error": {"message": f"Duplicate request ID detected: {asked.rid}"}})
        if self._most_queued and len(self._queue) >= self._most_queued:
            raise QueueFull
        if asked.sampling.max_new_tokens == 0:
            return await self._scored(asked)
        job = self._jobs[asked.rid] = Job(asked, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._work.set()
        try:
            return self._reply(job, await job.done)
        finally:
            del self._jobs[asked.rid]
            await self._drop(job)

    async def abort(self, beginning: str) -> None:
        """All whose id begins so."""
        async with self._maths:
            for job in [job for rid, job in self._jobs.items() if rid.startswith(beginning)]:
                self._withdraw(job)
                _end(job, "abort")

    async def pause(self, mode: str) -> None:
        """abort, retract or in_place."""
        async with self._maths:
            self.paused = True
            self._running.clear()
            self._drained.set()  # nobody waits for what does not go on
            if mode == "in_place":
                return
            for job in [*self._jobs.values()] if mode == "abort" else [job for job in self._jobs.values() if job.request]:
                self._withdraw(job)
                if mode == "abort":
                    _end(job, "abort")
                else:
                    job.retractions += 1
                    self._queue.appendleft(job)

    def resume(self) -> None:
        """/continue_generation."""
        self.paused = False
        self._running.set()

    async def update(self, directory: Path, label: str | None, *, flush: bool, abort: bool) -> str | None:
        """From disk; a reason where it did not succeed. Raises WrongShapes."""
        if abort:
            await self.abort("")
        async with self._changing:
            while not self.paused and self.decoding:
                self._drained.clear()
                await self._drained.wait()
            async with self._maths:
                try:
                    await asyncio.to_thread(self.model.load, directory)
                except Unreadable as error:
                    return str(error)
                self.path = str(directory)
                if flush and self.decoding:
                    return "Weights were updated, but the cache was not flushed because requests are still running or queued."
                self.name_weights(label or self.weight_version)
        return None

    def name_weights(self, label: str) -> None:
        """From here on."""
        self.weight_version = label
        self._labels.append(label)
        self.model.batch.swapped(self._version)

    @property
    def _version(self) -> Version:
        return Version(0, len(self._labels) - 1)

    def _newcomers(self) -> list[Request]:
        if self._changing.locked() or not self._queue:
            return []
        jobs = [self._queue.popleft() for _ in range(min(len(self._queue), self.model.batch.free))]
        for job in jobs:
            wanted = job.asked.sampling
            left = Sampling(wanted.temperature, wanted.max_new_tokens - len(job.ids), (), wanted.top_p, wanted.top_k)
            prompt = np.concatenate((job.asked.ids, np.array(job.ids, np.int32)))
            ticket = Ticket(next(self._tickets), 0, "", prompt, left, (), Version(0, 0))
            job.request = Request(ticket, wanted.stop_token_ids, asyncio.get_running_loop().create_future())
        return [job.request for job in jobs if job.request]

    @torch.inference_mode()
    def _step(self, newcomers: list[Request]) -> Finished:
        batch = self.model.batch
        finished = batch.join(newcomers, self._version)
        if batch.active:
            finished += batch.step()
            batch.compact()
        return finished

    def _tell(self) -> None:
        """Whether there is anything to do, and whether something is in flight."""
        if self.decoding:
            return
        self._drained.set()
        if not self._queue:
            self._work.clear()

    async def _drop(self, job: Job) -> None:
        """Nobody waits for it any more."""
        if job.request or job in self._queue:
            async with self._maths:
                self._withdraw(job)

    def _withdraw(self, job: Job) -> None:
        """Out of the queue, or out of the batch with what it has."""
        if job in self._queue:
            self._queue.remove(job)
        if job.request:
            request = job.request
            job.take(self.model.batch.so_far(request))
            self.model.batch.leave(request)

    async def _scored(self, asked: Asked) -> dict[str, Any]:
        await self._running.wait()
        raw, part = None, dict[str, Any]()
        async with self._maths:
            if asked.logprobs and 0 <= asked.start < len(asked.ids) - 1:
                raw = await asyncio.to_thread(self.model.score, asked.ids, asked.start, asked.top)
        if asked.logprobs and asked.start >= 0:
            part = prompt_part(asked, raw, self.model.shape.vocabulary)
        reply = reply_of(asked, self._meta([(len(self._labels) - 1, 0)], 0), [], [], {"type": "length", "length": 0})
        reply["meta_info"] |= part
        return reply

    def _reply(self, job: Job, end: str) -> dict[str, Any]:
        finish: dict[str, Any] = {"type": end}
        if end == "abort":
            finish |= {"message": "Aborted", "status_code": None, "err_type": None}
        else:
            finish |= {"matched": job.ids[-1]} if end == "stop" else {"length": len(job.ids)}
        return reply_of(job.asked, self._meta(job.spans, job.retractions), job.ids, job.logprobs, finish)

    def _meta(self, spans: list[tuple[int, int]], retractions: int) -> dict[str, Any]:
        counted = Counter[str]()
        for number, tokens in spans:
            counted[self._labels[number]] += tokens
        edges = [0, *itertools.accumulate(counted.values())]
        shown = [{"version": label, "start": edges[place], "end": edges[place + 1]} for place, label in enumerate(counted)]
        return {"weight_version": self.weight_version, "weight_versions": shown, "num_retractions": retractions}


def _end(job: Job, reason: str) -> None:
    if not job.done.done():
        job.done.set_result(reason)
