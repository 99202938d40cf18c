"""Is the teacher better than the student? Both answer a few of the held-out questions, and the run's own verifier judges them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from common.config import RunConfig
from common.messages import Completion, Rollout, Ticket, Version
from common.pulse import Pulse
from deploy.preflight.finding import Finding
from learner.prompts import load_eval_prompts
from producers.engines import open_engine
from producers.judge import Judge

_QUESTIONS = 64


async def check_better(config: RunConfig, name: str) -> list[Finding]:
    """A teacher that knows less than the student can only take away from it; for models that are computed here."""
    subject = f"teacher {name}: better"
    if not config.evaluation.prompts:
        return [Finding(subject, "ok", "not asked: there are no held-out questions (data.eval_prompts)")]
    if config.producer.kind != "torch" or config.teachers[name].kind != "torch":
        return [Finding(subject, "ok", "not asked: on servers; the run's evaluations will tell")]
    evaluation = config.evaluation.model_copy(update={"prompts": min(_QUESTIONS, config.evaluation.prompts), "samples_per_prompt": 1})
    few = config.model_copy(update={"evaluation": evaluation})
    tickets = (await asyncio.to_thread(load_eval_prompts, few)).tickets("preflight", Version(0, 0))
    student, teacher = [await _share_right(few, model, tickets) for model in (config.model.student, config.teachers[name].path)]
    says = f"of {len(tickets)} held-out questions the student gets {student:.0%} right, the teacher {teacher:.0%}"
    if teacher < student:
        return [Finding(subject, "warning", f"{says}: take a better teacher, or look at its template and its end of sequence")]
    return [Finding(subject, "ok", says)]


async def _share_right(config: RunConfig, model: Path, tickets: list[Ticket]) -> float:
    """Answers of the model in this directory, judged."""
    as_student = config.model_copy(update={"model": config.model.model_copy(update={"student": model})})
    engine = await asyncio.to_thread(open_engine, as_student, Pulse(), asyncio.get_running_loop())
    try:
        answers: list[Completion] = await asyncio.gather(*(engine.generate(ticket) for ticket in tickets))
    finally:
        await engine.aclose()
    rollouts = [Rollout(ticket, answer) for ticket, answer in zip(tickets, answers, strict=True)]
    verdicts = await Judge(config).judge(rollouts)
    return sum(verdict.correct for verdict in verdicts) / len(verdicts)
