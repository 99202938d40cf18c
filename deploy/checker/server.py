"""One look at the run on its Redis-protocol server: a script that only reads, so that everything in it is of the same instant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast  # Any: redis-py does not type what a script replies

import redis

from deploy.checker.checkpoints import Version
from deploy.checker.records import MANIFEST, open_message

_PATIENCE_S = 3.0
_LOOK = """
local root, adrift, dead, weights = KEYS[1], {}, {}, {}
local live = redis.call('HGETALL', root .. 'live')
for i = 1, #live, 2 do
  local entry, topic = string.match(live[i + 1], '^(%S+) %d+ (.*)$')
  local found = redis.call('XRANGE', root .. topic, entry, entry)
  if not found[1] or found[1][2][2] ~= live[i] then adrift[#adrift + 1] = live[i] end
end
local letters = redis.call('HGETALL', root .. 'dead')
for i = 1, #letters, 2 do
  local attempt, size, rest = string.match(letters[i + 1], '^(%d+) (%d+) (.*)$')
  for _, value in ipairs({letters[i], attempt, string.sub(rest, 1, tonumber(size))}) do dead[#dead + 1] = value end
end
for i, one in ipairs(redis.call('XRANGE', root .. 'weights', '-', '+')) do weights[i] = one[2][2] end
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local state = redis.call('HMGET', root .. 'state', 'term', 'cursor', 'applied', 'reconciled')
return {state, live, dead, adrift, weights, run_id, redis.call('EXISTS', root .. 'learner')}
"""


class NoAnswer(Exception):
    """The server cannot be asked; the sentence says why."""


class Place(NamedTuple):
    """Where a live seq is."""

    topic: str
    entry: str
    attempt: int


class Letter(NamedTuple):
    """Why a seq is dead."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Look:
    """`reconciled`: the learner of this term has made this server agree with its line, and the server has not been lost since.
    `adrift`: live, but the entry is not there. `weights`: versions on the log, oldest first."""

    term: int
    cursor: int
    applied: int
    reconciled: bool
    learner: bool
    live: Mapping[int, Place]
    dead: Mapping[int, Letter]
    adrift: frozenset[int] = field(default_factory=frozenset)
    weights: tuple[Version, ...] = ()


def look_at(url: str, run: str, login: Mapping[str, Any] | None = None) -> Look:
    """`login` are redis-py's options for user, password and TLS, where the address has none. Raises NoAnswer."""
    try:
        client = redis.Redis.from_url(url, protocol=2, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S, **(login or {}))
        with client:
            reply: Any = client.eval(_LOOK, 1, f"reflux:{{{run}}}:")
    except (redis.RedisError, OSError, ValueError) as error:
        raise NoAnswer(str(error).partition("\n")[0]) from error
    return _look(cast("list[Any]", reply))


def _look(reply: list[Any]) -> Look:
    (term, cursor, applied, reconciled), live, dead, adrift, weights, run_id, learner = reply
    return Look(
        term=int(term or 0),
        cursor=int(cursor or 0),
        applied=int(applied or 0),
        reconciled=reconciled is not None and reconciled.split() == [term, run_id],
        learner=bool(learner),
        live={int(seq): _place(text.decode()) for seq, text in zip(live[::2], live[1::2], strict=True)},
        dead={int(seq): Letter(int(n), text.decode(errors="replace")) for seq, n, text in zip(*[iter(dead)] * 3, strict=True)},
        adrift=frozenset(int(seq) for seq in adrift),
        weights=tuple(_versions(weights)),
    )


def _place(text: str) -> Place:
    entry, attempt, topic = text.split(" ", 2)
    return Place(topic, entry, int(attempt))


def _versions(manifests: Iterable[bytes]) -> Iterable[Version]:
    for manifest in manifests:
        try:
            (version, *_), _ = open_message(manifest, MANIFEST)
        except ValueError as error:
            raise NoAnswer(f"its weights log holds what is no manifest: {error}") from error
        yield Version(*version)
