"""Who may do what on a run's server: one user per role with the commands and keys that it needs, as lines of a Redis ACL file.

The lines are valid on Redis 6.2 as on Redis 7, 8 and Valkey, hence neither selectors nor %R~: a user may write every key that it may read,
as far as its commands go. So a producer, who writes to streams, reads the weights log as another user, the follower. A server checks what a
script calls against the caller's user too. Passwords stand in them as SHA-256 only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, get_args

Role = Literal["learner", "producer", "follower", "scorer", "operator", "observer"]
ROLES: tuple[Role, ...] = get_args(Role)

_CONNECTS = "ping select info"
_RUNS_SCRIPTS = f"{_CONNECTS} eval evalsha"
_LOOKS = "exists get hexists hget hgetall hkeys hlen hmget hscan smembers xlen xpending xrange xread"
_WORKS = "exists hdel hexists hget hincrby hmget hset pexpire sadd set xack xadd xclaim xdel xgroup|create xpending xrange xreadgroup"
_REAPS = "srem xgroup|delconsumer"
_COMMANDS: Mapping[Role, str] = {
    "learner": f"{_RUNS_SCRIPTS} {_LOOKS} {_WORKS} {_REAPS} del hsetnx xtrim",
    "producer": f"{_RUNS_SCRIPTS} {_WORKS}",
    "follower": f"{_CONNECTS} xread",
    "scorer": f"{_RUNS_SCRIPTS} {_WORKS}",
    "operator": f"{_RUNS_SCRIPTS} {_LOOKS} {_WORKS} {_REAPS} del",
    "observer": f"{_RUNS_SCRIPTS} {_LOOKS}",
}
_WORKERS_KEYS = ("live", "dead", "lives", "retried", "alone", "topics", "workers", "tickets", "rollouts:*")
_KEYS: Mapping[Role, tuple[str, ...]] = {
    "learner": ("*",),
    "producer": (*_WORKERS_KEYS, "eval", "evaluated", "calls:producer-*", "report:producer-*"),
    "follower": ("weights",),
    "scorer": (*_WORKERS_KEYS, "scored", "teachers", "calls:scorer-*", "report:scorer-*"),
    "operator": ("*",),
    "observer": ("*",),
}


def user_of(run: str, role: str) -> str:
    """The user's name on a server that may serve several runs."""
    return f"{run}-{role}"


def acl_line(run: str, role: Role, password: str) -> str:
    """One user; the rules begin with `reset`, so that loading them again leaves nothing of older ones."""
    root = f"reflux:{{{run}}}:"
    keys = [f"~{root}{name}" for name in ("", *_KEYS[role]) if not (name == "" and "*" in _KEYS[role])]
    commands = [f"+{command}" for command in dict.fromkeys(_COMMANDS[role].split())]
    digest = hashlib.sha256(password.encode()).hexdigest()
    return " ".join(["user", user_of(run, role), "reset", "on", f"#{digest}", *keys, "resetchannels", "-@all", *commands])


def acl_lines(run: str, passwords: Mapping[Role, str]) -> list[str]:
    """The users of a run."""
    return [acl_line(run, role, password) for role, password in passwords.items()]
