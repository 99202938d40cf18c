"""The compiled loops against PyTorch, in float32 and with bfloat16 as bits."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from common.kernels import normalise_rows, softmax_causal, spread_heads

TOLERANCE = {torch.float32: {"rtol": 2e-6, "atol": 1e-6}, torch.bfloat16: {"rtol": 8e-3, "atol": 1e-30}}
DTYPES = [torch.float32, torch.bfloat16]
EPS = np.float32(1e-6)


def array(tensor: Tensor) -> np.ndarray:
    return (tensor if tensor.dtype == torch.float32 else tensor.view(torch.uint16)).numpy()


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 32, 131])
def test_rows_are_normalised(dtype: torch.dtype, width: int) -> None:
    x, weight, out = random(9, width, dtype=dtype), random(width, seed=2), torch.empty(9, width, dtype=dtype)
    normalise_rows(array(x), weight.numpy(), EPS, array(out))
    expected = functional.rms_norm(x.float(), (width,), weight, float(EPS))
    torch.testing.assert_close(out.float(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 3, 16, 50])
def test_every_row_hears_the_columns_up_to_its_own(dtype: torch.dtype, length: int) -> None:
    scores = random(4, length, length, dtype=dtype) * 30
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    expected = torch.softmax((scores.float() * 0.3).masked_fill(hidden, -torch.inf), -1)
    softmax_causal(array(scores.view(-1, length)), np.float32(0.3))
    torch.testing.assert_close(scores.float(), expected, **TOLERANCE[dtype])
    assert not scores[:, hidden].any()


def test_weights_far_apart_vanish_without_a_not_a_number() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0], [-3e38, 3e38, 0.0], [-torch.inf, -200.0, 0.0]])
    softmax_causal(scores.numpy(), np.float32(1))
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), atol=1e-35, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_score_that_is_no_number_spoils_its_row_and_no_other(dtype: torch.dtype, bad: float) -> None:
    scores = random(20, 20, dtype=dtype)
    scores[7, 3] = bad
    softmax_causal(array(scores), np.float32(1))
    assert torch.isnan(scores[7, :8]).all()
    assert torch.isfinite(scores[[*range(7), *range(8, 20)]]).all()


def test_a_row_of_minus_infinities_is_no_distribution() -> None:
    scores = torch.full((2, 2), -torch.inf)
    softmax_causal(scores.numpy(), np.float32(1))
    assert torch.isnan(scores[0, 0])
    assert torch.isnan(scores[1]).all()


def test_numbers_become_the_bfloat16_that_pytorch_makes_of_them() -> None:
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38, 1e-40, torch.nan])
    wanted = torch.cat((ties, random(500, seed=5) * 10.0 ** torch.arange(-250, 250).div(10)))
    width = 2 * len(wanted)
    cos, none = wanted.repeat(2)[None], torch.empty(0).numpy()
    queries, keys, values = (torch.empty(1, 1, width, dtype=torch.bfloat16) for _ in range(3))
    ones = torch.ones(1, 3, width, dtype=torch.bfloat16)
    spread_heads(array(ones), none, none, EPS, cos.numpy(), np.zeros((1, width), np.float32), array(queries), array(keys), array(values))
    torch.testing.assert_close(queries[0], cos.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [True, False])
def test_heads_are_normalised_turned_and_laid_by_key_value_head(dtype: torch.dtype, has_norm: bool) -> None:
    batch, length, kv, group, width = 3, 5, 2, 3, 8
    heads = kv * group
    qkv = random(batch * length, heads + 2 * kv, width, dtype=dtype)
    norms = [random(width, seed=seed) if has_norm else torch.empty(0) for seed in (2, 3)]
    angle = random(length, width // 2, seed=4).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    signed = torch.cat((-sin[:, : width // 2], sin[:, width // 2 :]), -1)
    queries = torch.empty(batch * kv, group * length, width, dtype=dtype)
    keys, values = (torch.empty(batch * kv, length, width, dtype=dtype) for _ in range(2))
    spread_heads(
        array(qkv), *(norm.numpy() for norm in norms), EPS, cos.numpy(), signed.numpy(), array(queries), array(keys), array(values)
    )

    def turned(x: Tensor, norm: Tensor) -> Tensor:
        x = functional.rms_norm(x, (width,), norm, float(EPS)) if has_norm else x
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    states = qkv.float().view(batch, length, -1, width).transpose(1, 2)
    query, key, value = states.split([heads, kv, kv], 1)
    tolerance = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 8e-3, "atol": 1e-3}}[dtype]
    torch.testing.assert_close(queries.float(), turned(query, norms[0]).reshape(queries.shape), **tolerance)
    torch.testing.assert_close(keys.float(), turned(key, norms[1]).reshape(keys.shape), **tolerance)
    torch.testing.assert_close(values.float(), value.reshape(values.shape), rtol=0, atol=0)
