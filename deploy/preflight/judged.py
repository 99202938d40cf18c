"""Is the teacher better than the student? Both answer a few of the held-out questions, and the run's own verifier judges them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from common.config import RunConfig
from common.config.sections import ServersSection
from common.errors import Rejected, ServersUnreachable
from common.messages import Completion, Rollout, Span, Ticket, Version
from common.pulse import Pulse
from common.sglang.keys import read_keys
from common.sglang.pool import Limits, ServerPool
from common.sglang.reply import BadReply, parse_sampled
from common.sglang.shape import ModelShape, read_shape
from deploy.preflight.finding import Finding
from learner.prompts import load_eval_prompts
from producers.engines import open_engine
from producers.engines.sglang.engine import request_of
from producers.judge import Judge

_QUESTIONS = 64
_TO_SERVERS = 16  # large models, and long answers
_PATIENCE_S = 5.0


async def check_better(config: RunConfig, name: str) -> list[Finding]:
    """A teacher that knows less than the student can only take away from it."""
    subject = f"teacher {name}: better"
    if not config.evaluation.prompts:
        return [Finding(subject, "ok", "not asked: there are no held-out questions (data.eval_prompts)")]
    producer, section = config.producer, config.teachers[name]
    most = _QUESTIONS if producer.kind == section.kind == "torch" else _TO_SERVERS
    evaluation = config.evaluation.model_copy(update={"prompts": min(most, config.evaluation.prompts), "samples_per_prompt": 1})
    few = config.model_copy(update={"evaluation": evaluation})
    tickets = (await asyncio.to_thread(load_eval_prompts, few)).tickets("preflight", Version(0, 0))
    try:
        student = await _share_right(few, "producer", producer, config.model.student, tickets)
        teacher = await _share_right(few, f"teachers.{name}", section, section.path, tickets)
    except (Rejected, BadReply, ServersUnreachable) as error:
        return [Finding(subject, "warning", f"could not be asked: {error}")]
    says = f"of {len(tickets)} held-out questions the student gets {student:.0%} right, the teacher {teacher:.0%}"
    if teacher < student:
        return [Finding(subject, "warning", f"{says}: take a better teacher, or look at its template and its end of sequence")]
    return [Finding(subject, "ok", says)]


async def _share_right(config: RunConfig, key: str, section: ServersSection, model: Path, tickets: list[Ticket]) -> float:
    """Answers of the model that this section is about, judged."""
    if section.kind == "torch":
        answers = await _computed(config, model, tickets)
    else:
        answers = await _served(key, section, read_shape(model), tickets)
    rollouts = [Rollout(ticket, answer) for ticket, answer in zip(tickets, answers, strict=True)]
    verdicts = await Judge(config).judge(rollouts)
    return sum(verdict.correct for verdict in verdicts) / len(verdicts)


async def _computed(config: RunConfig, model: Path, tickets: list[Ticket]) -> list[Completion]:
    """By the model in this directory."""
    here = {"model": config.model.model_copy(update={"student": model}), "producer": config.producer.model_copy(update={"kind": "torch"})}
    engine = await asyncio.to_thread(open_engine, config.model_copy(update=here), Pulse(), asyncio.get_running_loop())
    try:
        return await asyncio.gather(*(engine.generate(ticket) for ticket in tickets))
    finally:
        await engine.aclose()


async def _served(key: str, section: ServersSection, shape: ModelShape, tickets: list[Ticket]) -> list[Completion]:
    """By the servers with the weights that they have."""
    limits = Limits(section.in_flight_tokens, section.requests_per_s, section.deadline_s, _PATIENCE_S)
    pool = ServerPool(who=key, urls=section.urls, keys=read_keys(section, key), limits=limits, shape=shape)
    try:
        return await asyncio.gather(*(_answer(pool, shape, ticket) for ticket in tickets))
    finally:
        await pool.aclose()


async def _answer(pool: ServerPool, shape: ModelShape, ticket: Ticket) -> Completion:
    request = request_of(ticket, shape)
    server, reply = await pool.ask(request)
    sampled = parse_sampled(reply, request, shape.vocabulary)
    if sampled.finish == "abort":
        raise Rejected(f"{server.url} aborted an answer")
    return Completion(sampled.ids, sampled.logprobs, (Span(0, 0, len(sampled.ids), exact=False),), sampled.finish)
