"""`reflux dead`: what a person does with the samples that were given up.

Guarantees: an action is on exactly the letters asked for, or on none; `retry` gives each a new attempt with fresh random numbers, which is
trained exactly once like any other, whether a learner runs now or later; `drop` keeps number and reason, so the ledger balances.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from common.bus.base import Bus, DeadLetter, Revival
from common.codec import decode, encode
from common.config import RunConfig
from common.errors import ConfigError, IdentityError, WireError
from common.messages import Message, Rollout, ScoredRollout, Ticket, Version, WeightManifest
from deploy.visit import say, visit
from learner.directory import RunDirectory
from learner.feeder import PromptSource

_FEW = 8


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters: by number, all, or those whose reason contains a text."""

    seqs: Sequence[int] = ()
    every: bool = False
    reason: str = ""

    def of(self, letters: Mapping[int, DeadLetter]) -> list[DeadLetter]:
        """Those that are meant, in order. Raises ConfigError where it is not clear which."""
        if bool(self.seqs) + self.every + bool(self.reason) != 1:
            raise ConfigError("say which samples: their numbers, or --all, or --reason TEXT (part of the reason)")
        unknown = [seq for seq in self.seqs if seq not in letters]
        if unknown:
            raise ConfigError(f"sample {unknown[0]} is not among the dead: `reflux dead list` says which are; nothing was changed")
        chosen = self.seqs or [seq for seq, letter in letters.items() if self.reason in letter.reason]
        return [letters[seq] for seq in sorted(set(chosen))]


def show_dead(config: RunConfig, selection: Selection, *, whole: bool) -> int:
    """`reflux dead list` and, with what each was when it died, `show`."""
    letters = visit(config, lambda bus: bus.dead_letters())
    for letter in selection.of(letters):
        say(f"{letter.seq} (attempt {letter.attempt}): {letter.reason}")
        for line in _content(letter.payload) if whole else ():
            say(f"    {line}")
    if not whole:
        say(f"{len(letters)} samples were given up")
    return 0


def _content(payload: bytes) -> Iterator[str]:
    if not payload:
        yield "its content is gone"
        return
    try:
        message = decode(payload)
    except WireError as error:
        yield f"{len(payload)} bytes that cannot be read: {error}"
        return
    yield f"{type(message).__name__}, {len(payload)} bytes"
    yield from _facts(message)


def _facts(message: Message) -> Iterator[str]:
    match message:
        case Ticket():
            yield f"prompt {message.prompt_id}, {len(message.prompt_ids)} tokens: {_ids(message.prompt_ids.tolist())}"
            yield f"teachers {', '.join(share.teacher for share in message.slip)}; for weights of at least {tuple(message.min_version)}"
        case Rollout():
            yield from _facts(message.ticket)
            answer = message.completion
            spans = ", ".join(f"{span.tokens} by ({span.term}, {span.step})" for span in answer.versions)
            yield f"answer, {len(answer.response_ids)} tokens ({spans}; {answer.finish_reason}): {_ids(answer.response_ids.tolist())}"
        case ScoredRollout():
            yield from _facts(message.rollout)
            for score in message.scores:
                yield f"scored by {score.teacher} ({score.digest[:12]}): mean log-probability {score.logprobs.mean():.3f}"


def _ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids[:_FEW])) + (" …" if len(ids) > _FEW else "")


def retry_dead(config: RunConfig, selection: Selection) -> int:
    """`reflux dead retry`."""
    if RunDirectory(config.directory).finished() is not None:
        raise ConfigError(f"the run {config.run.name} is finished: its dead samples can no longer be trained")

    async def retry(bus: Bus) -> tuple[int, int]:
        chosen = selection.of(await bus.dead_letters())
        return len(chosen), len(await revive(bus, chosen, _prompts(config))) if chosen else 0

    asked, revived = visit(config, retry)
    say(f"{revived} samples will be tried again" + (f"; {asked - revived} were no longer dead" if revived < asked else ""))
    return 0


async def revive(bus: Bus, letters: Sequence[DeadLetter], prompts: PromptSource) -> list[int]:
    """Gives them their next attempt, for the newest weights that were published."""
    manifests = [decode(payload, WeightManifest) for _, payload in await bus.weights_after("0", 0)]
    newest = max((one.version for one in manifests if isinstance(one, WeightManifest)), default=Version(0, 0))
    attempts = [(letter.seq, letter.attempt + 1) for letter in letters]
    return await bus.revive([Revival(seq, attempt, encode(prompts.ticket(seq, attempt, newest))) for seq, attempt in attempts])


def _prompts(config: RunConfig) -> PromptSource:
    """Those that the run began with."""
    from learner.prompts import load_prompts

    prompts, identity = load_prompts(config), RunDirectory(config.directory).identity
    if identity.exists() and json.loads(identity.read_text()).get("fingerprint of data.prompts") != prompts.fingerprint:
        raise IdentityError(f"{config.data.prompts} is not the file that this run was started with: restore it")
    return prompts


def drop_dead(config: RunConfig, selection: Selection) -> int:
    """`reflux dead drop`."""

    async def drop(bus: Bus) -> int:
        return len(await bus.strip([letter.seq for letter in selection.of(await bus.dead_letters())]))

    say(f"the content of {visit(config, drop)} samples was dropped; they stay given up, and `reflux dead list` still says why")
    return 0
