"""The KL by position counts every token once, in the bucket that its place in the answer belongs to."""

from __future__ import annotations

import torch

from learner.megatron.objective import _report_positions


def test_each_token_counts_in_its_own_bucket_and_micro_batches_add_up():
    sums: dict[str, torch.Tensor] = {}
    for _ in range(2):
        _report_positions(sums, torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 15, 16, 9000], dtype=torch.int32))
    assert {name: value.item() for name, value in sums.items() if value.item()} == {
        "kl_from:0": 6.0,
        "kl_from:16": 8.0,
        "kl_from:4096": 16.0,
        "tokens_from:0": 4.0,
        "tokens_from:16": 2.0,
        "tokens_from:4096": 2.0,
    }
