"""The random numbers of an answer: one uniform per position, a pure function of (run seed, seq, attempt, evaluation).

So neither the order of arrival nor the slot nor what else is in flight changes a draw. Philox4x64 is counter-based: its 128-bit key is a
digest of the identity, its counter the position.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import numpy.typing as npt

_BELOW_ONE = 1.0 - 2.0**-40  # keeps `uniform · total` strictly below the total after rounding


class Uniforms:
    """Draws from one reused generator: setting its key is several times cheaper than building a new one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._fresh = self._bits.state  # counter 0, empty buffer

    def of(self, seq: int, attempt: int, evaluation: str, count: int) -> npt.NDArray[np.float64]:
        """[count] uniforms in [0, 1) for positions 0 … count-1; a longer answer begins with the same numbers."""
        identity = struct.pack("<qqq", self._seed, seq, attempt) + evaluation.encode()
        digest = hashlib.blake2b(identity, digest_size=16).digest()
        self._fresh["state"]["key"] = np.frombuffer(digest, np.uint64)
        self._bits.state = self._fresh
        return self._generator.random(count) * _BELOW_ONE
