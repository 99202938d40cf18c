"""A step's record dealt out to the learner's ranks, over raw bytes.

Guarantees: the ranks of a data-parallel replica get the payloads that their replica trains on, and no others; nobody goes on before every
rank has said that it holds the bytes which rank 0 dealt to it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from common.messages import StepRecord


def hand_of(record: StepRecord, places: Sequence[int]) -> StepRecord:
    """The same step with only the samples at `places`; what is for the journal alone stays behind."""
    return replace(
        record,
        seqs=tuple(record.seqs[place] for place in places),
        attempts=tuple(record.attempts[place] for place in places),
        payloads=tuple(record.payloads[place] for place in places),
        origins=(),
    )


def deal(hands: Sequence[bytes], replicas: Sequence[int], group: dist.ProcessGroup) -> None:
    """Rank 0 to all others; `replicas` says which hand each rank gets. Raises RuntimeError as `receive` does."""
    dist.broadcast(torch.tensor([[len(hand), zlib.crc32(hand)] for hand in hands]), 0, group=group)
    tensors = [torch.frombuffer(bytearray(hand), dtype=torch.uint8) for hand in hands]
    sent = [dist.isend(tensors[replica], rank, group=group) for rank, replica in enumerate(replicas) if rank]
    for one in sent:
        assert one is not None, "rank 0 is in its own group"
        one.wait()
    _agree(group, held=True)


def receive(replica: int, count: int, group: dist.ProcessGroup) -> bytes:
    """This rank's hand of `count`; RuntimeError on every rank when any holds other bytes than were sent."""
    table = torch.empty(count, 2, dtype=torch.int64)
    dist.broadcast(table, 0, group=group)
    length, checksum = table[replica].tolist()
    hand = torch.empty(length, dtype=torch.uint8)
    dist.recv(hand, 0, group=group)
    received = hand.numpy().tobytes()
    _agree(group, held=zlib.crc32(received) == checksum)
    return received


def _agree(group: dist.ProcessGroup, *, held: bool) -> None:
    everyone = torch.tensor([int(held)])
    dist.all_reduce(everyone, dist.ReduceOp.MIN, group=group)
    if not everyone.item():
        raise RuntimeError("a rank of the learner holds other bytes than rank 0 has dealt: the network between them damages data")
