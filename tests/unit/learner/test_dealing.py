"""A step's record, dealt out to ranks."""

import pytest
import torch.distributed as dist
from learner_fakes import record_from
from torch._C._distributed_c10d import HashStore

from common.codec import decode, encode
from learner.batch import samples_of, scored_of
from learner.dealing import _agree, hand_of


def test_a_hand_makes_the_samples_that_the_whole_record_makes_at_its_places():
    record = record_from(1, 1, [4, 5, 6, 7], spans=((1, 0, 3),))
    whole, _ = samples_of(record, scored_of(record), 9)
    hand = decode(encode(hand_of(record, [0, 3])))
    mine, _ = samples_of(hand, scored_of(hand), 9)
    assert [sample.seq for sample in mine] == [4, 7]
    for one, other in zip(mine, (whole[0], whole[3]), strict=True):
        assert (one.prompt_ids == other.prompt_ids).all()
        assert (one.response_ids == other.response_ids).all()
        assert (one.lag_T == other.lag_T).all()


def test_a_replica_without_samples_gets_an_empty_hand():
    hand = decode(encode(hand_of(record_from(1, 1, [4]), [])))
    assert samples_of(hand, scored_of(hand), 9)[0] == []


def test_a_rank_that_holds_other_bytes_stops_them_all():
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        _agree(dist.group.WORLD, held=True)
        with pytest.raises(RuntimeError, match="holds other bytes"):
            _agree(dist.group.WORLD, held=False)
    finally:
        dist.destroy_process_group()
