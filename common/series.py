"""Every Prometheus name of Reflux, declared once: the endpoint exports nothing else, docs/metrics.md is made from here, and the dashboard
and the alert rules are checked against it.

A gauge of a Pulse is `name`, or `name:label` for a family with a label of its own: `teacher_kl:math` is
reflux_teacher_kl_nats{teacher="math"}. Text is no metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Family:
    """One Prometheus name as it is scraped; every series has `role` and `worker` beside `label`."""

    name: str
    kind: Literal["counter", "gauge"]
    label: str
    text: str


WAITING = Family("reflux_waiting_seconds_total", "counter", "cause", "wall seconds in which a worker waited, by what it waited for")
CPU = Family("reflux_cpu_seconds_total", "counter", "stage", "thread CPU seconds, by stage of the work")
PROCESS = Family("reflux_process_cpu_seconds_total", "counter", "", "CPU seconds of the process")
COUNT = Family("reflux_count_total", "counter", "what", "events since the process began")
GAUGE = Family("reflux_gauge", "gauge", "what", "a number as last seen")

LABELLED: Mapping[str, Family] = {
    "teacher_kl": Family("reflux_teacher_kl_nats", "gauge", "teacher", "KL between student and this teacher, nats per token, last step"),
    "teacher_differs": Family("reflux_teacher_differs", "gauge", "teacher", "1 unless teachers.NAME.allow_inert lets it equal the student"),
    "unhealthy": Family("reflux_teacher_unhealthy", "gauge", "teacher", "1 while this scorer has stopped because its teacher turned bad"),
    "position_kl": Family("reflux_position_kl_nats", "gauge", "from", "KL by place in the answer: tokens from this position on, last step"),
    "backlog": Family("reflux_backlog_entries", "gauge", "topic", "samples in a topic, those being worked on included"),
    "oldest": Family("reflux_oldest_age_seconds", "gauge", "topic", "age of a topic's oldest entry; 0 where it is empty"),
    "ledger": Family("reflux_ledger_samples", "gauge", "state", "admitted samples: live, applied, dead"),
}

FAMILIES = (WAITING, CPU, PROCESS, COUNT, GAUGE, *LABELLED.values())

COUNTS: Mapping[str, str] = {
    "samples": "samples handed on (learner: trained)",
    "tokens": "tokens sampled (producer), scored (scorer), processed in training (learner)",
    "trained_tokens": "response tokens in the loss",
    "masked_tokens": "tokens left out because they were too stale",
    "ghost_tokens": "tokens sampled by weights of a learner that has died",
    "steps": "optimizer steps",
    "batches": "forward passes of a scorer",
    "clamped": "log-probabilities below −1e4, cut there",
    "refused": "hand-offs refused because another worker had taken over; harmless",
    "rejected": "samples that a scorer gave up: dead letters",
    "buried": "samples that the learner gave up: dead letters",
    "retried_stale": "samples sampled again because they came too late",
    "discarded_applied": "entries dropped because they were trained already; harmless",
    "evaluated": "evaluation answers judged by a producer",
    "admitted": "tickets admitted",
    "publications": "weight versions published",
    "weight_updates": "weight versions loaded by a producer",
    "weights_refused": "weight versions that a producer could not load",
}

GAUGES: Mapping[str, str] = {
    "step": "learner: optimizer steps done; producer: step of the weights it samples with",
    "term": "learner: number of its life; producer: term of its weights",
    "published_step": "step of the newest published weights; minus a producer's `step` it is the weight lag",
    "loss": "of the last step",
    "grad_norm": "before clipping",
    "lr": "learning rate",
    "kl": "KL between student and teachers, nats per token (the loss's own direction)",
    "behaviour_kl": "mismatch: KL between the weights (and engine) that sampled and the learner's current ones, nats per token",
    "mixed_share": "share of samples whose weights changed in mid-answer",
    "staleness_mean": "of the trained tokens, in steps",
    "staleness_max": "of the trained tokens, in steps",
    "truncated_share": "share of answers cut off by sampling.max_new_tokens",
    "student_top_mass": "student's probability on the teacher's top-k ids",
    "teacher_top_mass": "teacher's probability on its own top-k ids",
    "entropy_gap": "student's minus teacher's entropy on the teacher's top-k and the rest, nats; below 0 the student is too sure",
    "sampled_in_top_k": "share of sampled tokens that are among the teacher's top-k",
    "top_k_overlap": "share of the student's top-k ids that are among the teacher's; needs producer.record_top_k",
    "accuracy": "pass@1 of the last evaluation",
    "accuracy_step": "step of the last evaluation",
    "evaluated": "answers of the open evaluation that have come",
    "evaluation_size": "answers that the open evaluation waits for",
    "replayed_steps": "steps replayed from the journal at the last start",
    "replay_s": "seconds that took",
}

TEXTS = frozenset({"metrics", "obstacle", "complaint", "teacher", "evaluating", "published", "blocked"})
"""Gauges that are words: for `reflux status` and the dashboard, not for Prometheus."""
