"""What callers branch on. Every message is one sentence that says what to do.

RefluxError
├── UserError            bad input or configuration: printed without a traceback, exit code 2
│   ├── ConfigError      the run's TOML, a --set or a path in it
│   └── IdentityError    the run directory belongs to another identity configuration
├── BusError             the Redis-protocol server
│   ├── BusUnreachable   nobody answers, or not in time
│   └── BusFull          the server's memory is used up
├── Superseded           a newer term exists: this learner has nothing more to say
├── LearnerActive        another learner holds the run's lease
├── ServersUnreachable   no SGLang server of a role is in rotation, or all are full, for too long
├── WireError            bytes that are not a message of this schema
│   └── OtherSchema      a message of another version of Reflux: no sample's fault, so the reader stops
├── WeightsError         a manifest or weight file that cannot be trusted or read
│   └── StoreAway        the weight store cannot be reached or written now
├── DiskFull             there is no room on the run's disk
└── Rejected             one sample that cannot be used; `reason` goes to the dead letters
"""

from __future__ import annotations


class RefluxError(Exception):
    """Root of everything Reflux raises on purpose."""


class UserError(RefluxError):
    """Bad input: the message says what to write instead."""


class ConfigError(UserError):
    """A configuration key or value."""


class IdentityError(UserError):
    """A run directory made by another identity configuration."""


class BusError(RefluxError):
    """The bus could not do what was asked."""


class BusUnreachable(BusError):
    """No server answered within the deadline."""


class BusFull(BusError):
    """The server refused a write for lack of memory; nothing changed."""


class Superseded(RefluxError):
    """A learner of a higher term has taken over."""


class LearnerActive(UserError):
    """A second learner was started while the first one's lease lives."""


class ServersUnreachable(RefluxError):
    """No server of the role could be asked within the deadline."""


class WireError(RefluxError):
    """Bytes that are no message of this schema version."""


class OtherSchema(WireError):
    """A message that another version of Reflux wrote."""


class WeightsError(RefluxError):
    """A weight version that is missing, damaged, or outside the store."""


class StoreAway(WeightsError):
    """The weight store does not answer, or cannot be written; a later try may succeed."""


class DiskFull(RefluxError):
    """A file could not be written for lack of room; what was begun is undone."""


class Rejected(RefluxError):
    """One sample that must not be trained on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
