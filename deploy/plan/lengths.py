"""How long answers are: from a run's own lengths, from percentiles, or from a mean. Never above the longest that is sampled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError
from deploy.plan.rates import Answers

Lengths = npt.NDArray[np.int64]
_Reals = npt.NDArray[np.float64]
_FITS = 40  # halvings of the search for a mean


def draw(answers: Answers, longest: int, count: int, seed: int) -> Lengths:
    """`count` lengths of 1 … `longest` tokens, the same for the same arguments. Raises ConfigError."""
    random = np.random.default_rng(seed)
    if answers.lengths:
        drawn = random.choice(np.asarray(answers.lengths, np.float64), count)
    elif answers.percentiles:
        drawn = _between(answers.percentiles, longest, random.random(count))
    else:
        drawn = _log_normal(answers, longest, random.standard_normal(count))
    lengths: Lengths = np.clip(np.rint(drawn), 1, longest).astype(np.int64)
    return lengths


def _between(percentiles: dict[str, int], longest: int, quantiles: _Reals) -> _Reals:
    try:
        known = sorted((float(name), tokens) for name, tokens in percentiles.items())
    except ValueError:
        raise ConfigError(f"answers.percentiles = {percentiles} is wrong: write numbers between 0 and 100 before the tokens") from None
    shares, tokens = zip(*known, strict=True)
    if shares[0] < 0 or shares[-1] > 100 or list(tokens) != sorted(tokens) or tokens[-1] > longest:
        raise ConfigError(
            f"answers.percentiles = {percentiles} is wrong: tokens grow with the percentile, from 0 to 100, up to "
            f"sampling.max_new_tokens = {longest}"
        )
    between: _Reals = np.interp(100 * quantiles, [0.0, *shares, 100.0], [1.0, *tokens, float(longest)])
    return between


def _log_normal(answers: Answers, longest: int, normal: _Reals) -> _Reals:
    """What is cut at `longest` pulls the mean down: the uncut one is raised until the cut one is as asked."""
    assert answers.mean is not None
    if answers.mean > longest:
        raise ConfigError(f"answers.mean = {answers.mean:g} is more than sampling.max_new_tokens = {longest}: lower it, or raise that")
    sigma = float(np.sqrt(np.log1p(answers.spread**2)))
    shape = np.exp(sigma * normal - sigma**2 / 2)
    low, high = answers.mean, 100.0 * longest
    for _ in range(_FITS):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * shape, longest).mean() < answers.mean else (low, middle)
    cut: _Reals = np.minimum(low * shape, longest)
    return cut
