"""Every seq below the cursor is in exactly one place: applied, live, or dead with a reason; and the ledger says so too (P2, P6).

Before the learner has reconciled (a server that came back, a learner that has just claimed its term) the server's word is only reported:
what it still has as live although it is applied is pending settle, what it lacks is admitted again. Raises Violation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any  # JSON values

from deploy.checker.line import Line, Violation
from deploy.checker.server import Look


def check_server(line: Line, look: Look, *, finished: bool) -> Iterator[str]:
    """The line against the server; yields what is worth a note."""
    _check_weights(look)
    pending = {seq for seq in look.live if line.counted[seq]}
    if not look.reconciled:
        nowhere = sum(1 for seq in range(line.cursor) if not line.counted[seq] and seq not in look.live and seq not in look.dead)
        yield "the learner has not reconciled with this server yet: it does so when it goes on"
        yield f"until then {len(pending)} applied samples are live there (pending settle) and {nowhere} are to be admitted again"
        return
    _check_balance(look)
    _check_places(line, look)
    late = sorted(pending if finished else pending - line.recent)
    if late:
        raise Violation(f"seq {late[0]} is applied and still live, although the learner has reconciled", late[0])
    if pending:
        yield f"{len(pending)} samples of the last record are pending settle"
    lost = [seq for seq in range(look.cursor) if not line.counted[seq] and seq not in look.live and seq not in look.dead]
    if lost and line.torn and not look.learner:
        yield f"{len(lost)} samples of the torn record are to be admitted again when the learner goes on"
        return
    if lost:
        raise Violation(f"seq {lost[0]} is lost: below the cursor {look.cursor}, and neither applied nor live nor dead", lost[0])
    _check_counts(line, look, len(pending))


def _check_weights(look: Look) -> None:
    for one, other in pairwise(look.weights):
        if other < one:
            raise Violation(f"the weights log goes back from version {tuple(one)} to {tuple(other)}")


def _check_balance(look: Look) -> None:
    live, dead = len(look.live), len(look.dead)
    if look.cursor != live + look.applied + dead:
        raise Violation(f"the ledger does not balance: cursor {look.cursor} is not live {live} + applied {look.applied} + dead {dead}")


def _check_places(line: Line, look: Look) -> None:
    if line.known_cursor > look.cursor:
        raise Violation(f"the cursor goes back from {line.known_cursor} in the journal to {look.cursor} on the server")
    for seq, letter in look.dead.items():
        if line.counted[seq]:
            raise Violation(f"seq {seq} is applied and dead", seq)
        if seq in look.live:
            raise Violation(f"seq {seq} is live and dead", seq)
        if not letter.reason:
            raise Violation(f"seq {seq} is dead without a reason", seq)
    for seq in sorted(look.adrift):
        raise Violation(
            f"seq {seq} is lost: it is said to be live as {look.live[seq].entry} in {look.live[seq].topic}, which has no such entry", seq
        )


def _check_counts(line: Line, look: Look, pending: int) -> None:
    applied = sum(1 for seq in line.counted if seq < look.cursor)
    if applied - pending != look.applied:
        raise Violation(
            f"the server counts {look.applied} samples as applied, the journal {applied} of which {pending} are not yet settled"
        )


def check_result(line: Line, result: Mapping[str, Any]) -> None:
    """The line against the result of a finished run."""
    ledger = result["ledger"]
    if ledger["admitted"] != ledger["applied"] + ledger["live"] + ledger["dead"]:
        raise Violation(f"the ledger of result.json does not balance: {ledger}")
    unreasoned = next((int(seq) for seq, reason in result["dead"].items() if not reason), None)
    if unreasoned is not None:
        raise Violation(f"seq {unreasoned} is dead without a reason", unreasoned)
    applied = len(line.counted)
    for what, said in (("applied", ledger["applied"]), ("samples", result["samples"])):
        if said != applied:
            raise Violation(f"result.json says {what} {said}, the journal has {applied}")
    if result["steps"] != line.step:
        raise Violation(f"result.json says steps {result['steps']}, the journal ends at step {line.step}")
    dead = {int(seq) for seq in result["dead"]}
    open_seqs = [seq for seq in range(ledger["admitted"]) if not line.counted[seq] and seq not in dead]
    if len(open_seqs) != ledger["live"]:
        raise Violation(f"seq {open_seqs[0]} is lost: the run is finished with {ledger['live']} live", open_seqs[0])
    _check_staleness(line, result["staleness"])


def _check_staleness(line: Line, said: Mapping[str, Any]) -> None:
    if line.records < line.step:  # some steps are known by a checkpoint's list only
        return
    counted = {str(lag): tokens for lag, tokens in sorted(line.staleness.items())}
    if (said["histogram"], said["masked_tokens"]) != (counted, line.masked):
        raise Violation(
            f"result.json says staleness {said['histogram']}, {said['masked_tokens']} masked; the journal {counted}, {line.masked}"
        )
