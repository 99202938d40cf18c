"""How many response tokens one server may have in flight: additive increase, multiplicative decrease (AIMD).

Guarantees: between one request and `most`; halved by a 503, a reply that took more than half of its deadline, or none in time, but once per
`_CALM_S`, since one congestion is reported by many requests; regrown by a sixteenth of `most` for every `most` tokens answered in time.
"""

from __future__ import annotations

_GROWTH = 16
_CALM_S = 1.0


class Budget:
    """Of one server. Times are seconds of a monotonic clock."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._shrunk_at = float("-inf")

    @property
    def limit(self) -> int:
        """Tokens."""
        return int(self._limit)

    def fits(self, in_flight: int, tokens: int) -> bool:
        """Whether so many more may be sent; one request always may."""
        return in_flight == 0 or in_flight + tokens <= self._limit

    def answered(self, tokens: int) -> None:
        """In good time."""
        self._limit = min(self._most, self._limit + tokens / _GROWTH)

    def congested(self, now: float) -> None:
        """Too much was sent."""
        if now - self._shrunk_at >= _CALM_S:
            self._limit = max(1.0, self._limit / 2)
            self._shrunk_at = now
