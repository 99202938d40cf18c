"""Run directories made by hand, with the product's own writers, and looks at servers that never were."""

from __future__ import annotations

import asyncio
import json

import numpy as np

from common.codec import encode
from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, StepRecord, TeacherScore, TeacherShare, Ticket, Version
from deploy.checker import Look, NoAnswer, audit
from deploy.checker.server import Letter, Place
from learner import checkpoint
from learner.batch import payload_digest
from learner.journal import Journal
from learner.line import Line

SAMPLING = Sampling(1.0, 8, (0,))


def payload_of(seq, spans, mask=None):
    length = sum(span[2] for span in spans)
    slip = (TeacherShare("t", 1.0),)
    ticket = Ticket(seq, 0, str(seq), np.array([1, 2, 3], np.int32), SAMPLING, slip, Version(1, 0))
    mask = None if mask is None else np.array(mask, np.uint8)
    floats = np.full(length, -0.5, np.float32)
    answer = Completion(np.arange(length, dtype=np.int32), floats, tuple(Span(*span, True) for span in spans), "stop", mask)
    return encode(ScoredRollout(Rollout(ticket, answer), (TeacherScore("t", "d", floats),)))


def record_of(term, step, seqs, *, cursor=None, spans=None, mask=None, **changes):
    """Sampled by the weights of the step before, where `spans` does not say otherwise."""
    payloads = tuple(payload_of(seq, spans or [(term, step - 1, 4)], mask) for seq in seqs)
    values = {
        "term": term,
        "step": step,
        "seqs": tuple(seqs),
        "attempts": (0,) * len(seqs),
        "cursor": max(seqs) + 1 if cursor is None else cursor,
        "digest": payload_digest(payloads),
        "payloads": payloads,
    }
    return StepRecord(**(values | changes))


def sound_records(term=1, steps=(1, 2, 3)):
    return [record_of(term, step, [2 * step - 2, 2 * step - 1]) for step in steps]


def line_after(records, line=None):
    line = line or fresh(1)
    for record in records:
        line.apply(record)
    return line


def fresh(term):
    line = Line()
    line.begin(term)
    return line


def no_server():
    raise NoAnswer("nobody there")


def look(*, cursor=6, live=(), dead=(), applied=6, term=1, **changes):
    """After a reconcile, with a learner at work."""
    places = {seq: Place("tickets", f"{1000 * seq}-0", 0) for seq in live}
    letters = {seq: Letter(2, "poison") for seq in dead}
    return Look(**({"reconciled": True, "learner": True} | changes), term=term, cursor=cursor, applied=applied, live=places, dead=letters)


class Run:
    """runs/NAME."""

    def __init__(self, root, *, max_staleness=1):
        self.root, self.journal, self.checkpoints = root, root / "journal", root / "checkpoints"
        for directory in (self.journal, self.checkpoints):
            directory.mkdir(parents=True)
        (root / "config.json").write_text(json.dumps({"learner": {"max_staleness": max_staleness}}))

    def write(self, term, records, *, into=None):
        """Records into the journal of a term, in a segment of their own."""
        log = Journal(self.journal, into or term)

        async def append():
            for record in records:
                await log.append(record)

        asyncio.run(append())
        log.close()
        return max((self.journal / f"term{into or term:06}").iterdir())

    def keep(self, line):
        """A checkpoint of the line."""
        return checkpoint.save(self.checkpoints, line.to_json(), {}, lambda directory: (directory / "model.bin").write_bytes(b"weights"))

    def audit(self, seen=None):
        return audit(self.root, no_server if seen is None else lambda: seen)


def sound(root, **options):
    """Term 1, three steps of two samples, a checkpoint at the beginning and at the end."""
    run, records = Run(root, **options), sound_records()
    run.keep(fresh(1))
    run.write(1, records)
    run.keep(line_after(records))
    return run


def over_two_terms(root):
    """Term 1 goes to step 4; term 2 resumes from its checkpoint of step 2 and record 3, and goes to 5. Term 1's step 4 is a ghost."""
    run, records = Run(root), [record_of(1, step, [step - 1]) for step in (1, 2, 3, 4)]
    run.write(1, records)
    line = line_after(records[:2])
    run.keep(line)
    line.apply(records[2])
    line.begin(2)
    run.keep(line)
    run.write(2, [record_of(2, 4, [3]), record_of(2, 5, [4], spans=[(1, 4, 4)])])
    return run
