"""Deltas of tensors: exact for every dtype, applied once only, and bounded in memory."""

from __future__ import annotations

import hashlib
import struct
from itertools import pairwise

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import WeightsError
from common.weights import delta as delta_module
from common.weights.delta import PIECE, apply_deltas, encode_delta

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "U8": 1}
HEADER = 80


def digest(tensor: bytes) -> str:
    return hashlib.sha256(tensor).hexdigest()


def encoded(base: bytes, new: bytes, width: int = 2) -> bytes | None:
    return encode_delta(base, new, width=width, base_digest=digest(base), digest=digest(new))


def must(base: bytes, new: bytes, width: int = 2) -> bytes:
    delta = encoded(base, new, width)
    assert delta is not None
    return delta


def applied(base: bytes, *deltas: bytes) -> bytes:
    tensor = bytearray(base)
    apply_deltas(tensor, digest(base), deltas)
    return bytes(tensor)


def changed(base: bytes, width: int, places: list[int]) -> bytes:
    new = bytearray(base)
    for place in places:
        new[place * width : (place + 1) * width] = (np.frombuffer(new, np.uint8)[place * width : (place + 1) * width] ^ 0x11).tobytes()
    return bytes(new)


def random_bytes(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("places", [[], [0], [999], [0, 999], [255], [256], [510, 511], [0, 254, 255, 256, 600], list(range(300))], ids=str)
def test_a_delta_gives_the_new_bytes_whatever_has_changed(width: int, places: list[int]) -> None:
    base = random_bytes(1000 * width)
    new = changed(base, width, places)
    delta = must(base, new, width)
    assert len(delta) < len(new)
    assert applied(base, delta) == new


@pytest.mark.parametrize("count", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 5])
def test_tensors_longer_than_a_piece_come_back_to_the_last_element(count: int) -> None:
    base = random_bytes(2 * count)
    new = changed(base, 2, [place for place in (0, PIECE - 1, PIECE, 2 * PIECE, count - 1) if place < count])
    delta = must(base, new)
    assert len(delta) < 20_000
    assert applied(base, delta) == new


@pytest.mark.parametrize(("dtype", "steps"), [(np.float16, 30), (np.float32, 30), (np.float32, 1)])
def test_small_steps_of_floats_come_back_bit_for_bit(dtype: type, steps: int) -> None:
    rng = np.random.default_rng(steps)
    base = rng.standard_normal(5000).astype(dtype)
    base[:4] = [0.0, -0.0, np.nan, np.inf]
    new = base.copy()
    at = rng.choice(5000, 10 * steps, replace=False)
    new[at] = np.nextafter(base[at], dtype(np.inf))
    new[:2] = [-0.0, 0.0]
    assert applied(base.tobytes(), must(base.tobytes(), new.tobytes(), base.itemsize)) == new.tobytes()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(WIDTHS.values())),
    st.integers(0, 700),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=60),
    st.integers(0, 7),
)
def test_any_change_comes_back_or_is_sent_whole(width: int, elements: int, changes: list[tuple[int, int]], shift: int) -> None:
    base = random_bytes(elements * width, elements)
    new = bytearray(base)
    for place, mask in changes:
        if new:
            new[place % len(new)] ^= mask
    unaligned = memoryview(bytes(shift) + base)[shift:]  # tensors lie anywhere in a file
    delta = encode_delta(unaligned, new, width=width, base_digest=digest(base), digest=digest(new))
    count = np.count_nonzero((np.frombuffer(base, np.uint8) != np.frombuffer(new, np.uint8)).reshape(-1, width).any(1))
    if delta is None:
        assert count > elements // 3 + 64 or len(new) < HEADER + 60 + 2 * count * (width + 1)
    else:
        assert len(delta) < len(new)
        assert applied(base, delta) == new


def test_there_is_no_delta_where_it_would_not_be_smaller() -> None:
    base = random_bytes(3000)
    assert encoded(base, random_bytes(3000, 1)) is None, "everything has changed"
    assert encoded(base, changed(base, 2, list(range(565)))) is None, "more than a third has changed"
    assert encoded(b"", b"") is None, "there is nothing in it"
    assert encoded(bytes(8), changed(bytes(8), 2, [1])) is None, "the header alone is longer"


def test_there_is_no_delta_to_another_size_or_of_half_an_element() -> None:
    base = random_bytes(3000)
    assert encoded(base, base[:-2]) is None
    assert encoded(base[:-1], base[:-1]) is None
    assert encoded(base, base, width=3) is None


def test_a_chain_is_applied_in_its_order_only() -> None:
    versions = [random_bytes(4000)]
    for place in range(3):
        versions.append(changed(versions[-1], 2, [place, place + 1, 1999]))
    one, two, three = (must(*pair) for pair in pairwise(versions))
    assert applied(versions[0], one, two, three) == versions[3]
    assert applied(versions[0]) == versions[0]
    for wrong in ([one, three], [two], [one, two, two], [two, one]):
        with pytest.raises(WeightsError, match="another base"):
            applied(versions[0], *wrong)


def test_a_delta_applied_twice_is_refused_instead_of_taken_back() -> None:
    base = random_bytes(4000)
    delta = must(base, changed(base, 2, [5]))
    with pytest.raises(WeightsError, match="applied already"):
        applied(base, delta, delta)
    with pytest.raises(WeightsError, match="applied already"):
        applied(applied(base, delta), delta)


def test_a_base_that_is_not_what_its_digest_says_is_found_out() -> None:
    base = random_bytes(4000)
    delta = must(base, changed(base, 2, [5]))
    tensor = bytearray(changed(base, 2, [9]))
    with pytest.raises(WeightsError, match="another digest than it promises"):
        apply_deltas(tensor, digest(base), [delta])


def test_a_delta_for_another_size_is_refused() -> None:
    base = random_bytes(4000)
    delta = must(base, changed(base, 2, [5]))
    with pytest.raises(WeightsError, match="not for a tensor of 3998 bytes"):
        applied(base[:-2], delta)


def test_every_single_flipped_bit_is_refused() -> None:
    base = random_bytes(4000)
    new = changed(base, 2, [0, 7, 300, 1999])
    delta = must(base, new)
    for at in range(len(delta)):
        for bit in range(8):
            damaged = delta[:at] + bytes([delta[at] ^ 1 << bit]) + delta[at + 1 :]
            try:
                assert applied(base, damaged) == new, "a bit that means nothing"
            except WeightsError:
                continue


def test_every_truncation_and_every_extra_byte_is_refused() -> None:
    base = random_bytes(4000)
    delta = must(base, changed(base, 2, [0, 7, 300, 1999]))
    for damaged in [*(delta[:end] for end in range(len(delta))), delta + b"\0"]:
        with pytest.raises(WeightsError):
            applied(base, damaged)


def _bomb(changed_: int, gaps: bytes, xors: bytes) -> bytes:
    base = bytes(4000)
    start = struct.pack("<4sIQ32s32s", b"RFD1", 2, 2000, hashlib.sha256(base).digest(), bytes(32))
    return start + struct.pack("<III", changed_, len(gaps), len(xors)) + gaps + xors


def test_what_a_piece_says_of_its_size_is_checked_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = zstandard.ZstdCompressor().compress
    lots, unsaid = pack(bytes(1 << 26)), zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4))
    taken: list[int] = []
    real = delta_module.zstandard.ZstdDecompressor

    class Watched:
        def decompress(self, packed: bytes, allow_extra_data: bool) -> bytes:
            taken.append(zstandard.frame_content_size(packed))
            return real().decompress(packed, allow_extra_data=allow_extra_data)

    monkeypatch.setattr(delta_module.zstandard, "ZstdDecompressor", Watched)
    few = pack(bytes(2))
    for bomb in [_bomb(2, lots, few), _bomb(2, few, lots), _bomb(2, unsaid, few), _bomb(2, few, unsaid), _bomb(2_000_000_000, few, few)]:
        with pytest.raises(WeightsError, match="damaged"):
            applied(bytes(4000), bomb)
    assert max(taken, default=0) <= 2


def test_indices_and_counts_that_do_not_fit_are_refused() -> None:
    pack = zstandard.ZstdCompressor().compress
    for bomb in [
        _bomb(2, pack(b"\1"), pack(bytes(4))),  # fewer gaps than changes
        _bomb(2, pack(b"\1\1"), pack(bytes(3))),  # no whole elements
        _bomb(2, pack(b"\1\1"), pack(bytes(2))),  # fewer changes than gaps
        _bomb(1, pack(b"\xff" * 7 + b"\xfe"), pack(b"\1\1")),  # element 2039 of 2000
        _bomb(1, pack(b"\1\xff"), pack(b"\1\1")),  # gaps that lead nowhere
    ]:
        with pytest.raises(WeightsError, match="damaged"):
            applied(bytes(4000), bomb)
