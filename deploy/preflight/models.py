"""Checks on files alone: do student and teacher speak the same tokens, and does the learner fit into memory?"""

from __future__ import annotations

import asyncio
from pathlib import Path

from common.config import RunConfig
from common.sglang.shape import read_shape
from deploy.preflight.finding import Finding
from deploy.preflight.memory import learner_bytes, memory_here
from deploy.preflight.templates import read_alike
from learner.megatron.architecture import read_architecture
from learner.prompts import load_eval_prompts, load_prompts
from learner.prompts.rows import read_rows
from scorers.probe import check_tokenizers
from scorers.tokenizers import Vocabulary, load_vocabulary

_SHOWN = 6


async def check_prompts(config: RunConfig) -> list[Finding]:
    """Every prompt is read, rendered and tokenised as the learner does it."""
    source = await asyncio.to_thread(load_prompts, config)
    held_out = await asyncio.to_thread(load_eval_prompts, config)
    return [Finding("prompts", "ok", f"{len(source):,} to train on, {len(held_out):,} questions per evaluation")]


async def check_student(config: RunConfig) -> list[Finding]:
    """The learner can train it, in the memory that there is."""
    architecture = read_architecture(config.model.student)
    needs, (there, what) = learner_bytes(config, architecture), memory_here()
    says = f"{architecture.family}; a learner rank takes about {_gb(needs)} GB by calculation, {what} has {_gb(there)} GB free"
    if needs > there:
        advice = "raise learner.tensor_parallel or pipeline_parallel, set learner.recompute = true, or lower learner.micro_batch_tokens"
        return [Finding("learner", "warning", f"{says}: {advice}")]
    return [Finding("learner", "ok", says)]


async def check_reading(config: RunConfig, name: str) -> list[Finding]:
    """Token maps, special tokens, padding rows and rendered prompts of teacher `name` beside the student's."""
    return await asyncio.to_thread(_reading, config, name)


def _reading(config: RunConfig, name: str) -> list[Finding]:
    check_tokenizers(config, name)
    student, teacher = config.model.student, config.teachers[name].path
    mine, theirs = load_vocabulary(student), load_vocabulary(teacher)
    found = [
        Finding(f"teacher {name}: tokens", "ok", f"{len(mine.ids):,} tokens have the same ids; {_padding(student, teacher, mine)}"),
        *_special(name, mine, theirs),
    ]
    rows, _ = read_rows(config.data.prompts, "data.prompts")
    found.append(read_alike(config, name, rows))
    return found


def _padding(student: Path, teacher: Path, vocabulary: Vocabulary) -> str:
    used = max(vocabulary.ids.values()) + 1
    rows = {"student": read_shape(student).vocabulary, "teacher": read_shape(teacher).vocabulary}
    return "padding rows: " + ", ".join(f"{who} {most - used:,}" for who, most in rows.items())


def _special(name: str, mine: Vocabulary, theirs: Vocabulary) -> list[Finding]:
    words = {index: token for token, index in mine.ids.items()}
    only = [f"{words.get(i, i)!r} of the student" for i in sorted(mine.special_ids - theirs.special_ids)]
    only += [f"{words.get(i, i)!r} of the teacher" for i in sorted(theirs.special_ids - mine.special_ids)]
    if not only:
        return []
    says = f"special tokens differ: {', '.join(only[:_SHOWN])} alone; texts that hold them are cut into other tokens by one of the two"
    return [Finding(f"teacher {name}: special tokens", "warning", says)]


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
