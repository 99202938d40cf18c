"""What another version of Reflux wrote stops the learner with one sentence; none of it is given up, skipped or sampled again."""

import struct
import zlib

import msgpack
import pytest
from learner_fakes import record_from, scored_rollout
from test_holding import Bench

from common.codec import decode, encode
from common.errors import OtherSchema
from common.messages import Hop, ScoredRollout
from learner import journal
from learner.journal import Journal


def of_schema_3(frame: bytes) -> bytes:
    return frame[:4] + struct.pack("<H", 3) + frame[6:]


async def test_a_journal_of_another_version_is_not_taken_for_a_torn_one(tmp_path):
    log = Journal(tmp_path, 1)
    await log.append(record_from(1, 1, [0]))
    log.close()
    (segment,) = (tmp_path / "term000001").iterdir()
    body = of_schema_3(encode(record_from(1, 2, [1])))
    with segment.open("ab") as file:
        file.write(struct.pack("<II", len(body), zlib.crc32(body)) + body)
    with pytest.raises(OtherSchema, match="holds a message of schema 3, but this Reflux speaks schema 2"):
        list(journal.records(tmp_path, 1))


async def test_a_scored_rollout_of_another_version_is_not_buried():
    bench = Bench()
    leases = await bench.score(2, payload=lambda seq: of_schema_3(encode(scored_rollout(seq))))
    with pytest.raises(OtherSchema, match="run the same version everywhere"):
        await bench.holding.take_in(leases)
    assert (await bench.balanced()).dead == 0


def of_schema_1(frame: bytes) -> bytes:
    """A scored rollout as schema 1 wrote it: without hops."""
    kind, length = struct.unpack_from("<HI", frame, 6)
    header = msgpack.packb(msgpack.unpackb(frame[12 : 12 + length])[:2])
    return struct.pack("<4sHHI", b"RFX1", 1, kind, len(header)) + header + bytes(-len(header) % 4) + frame[12 + length + -length % 4 :]


def test_a_sample_of_schema_1_has_no_hops_and_is_read():
    newer = scored_rollout(7)._replace(hops=(Hop("producer", 1, 2, 3),))
    assert decode(encode(newer)).hops == newer.hops
    older = decode(of_schema_1(encode(newer)), ScoredRollout)
    assert (older.hops, older.rollout.ticket.seq, older.scores[0].logprobs.tolist()) == ((), 7, newer.scores[0].logprobs.tolist())
