"""What best-of-n sampling is worth: expected reward of the best of n answers, from N >= n answers a prompt.

* The same answers serve every n: all their subsets of size n are averaged over, without drawing any.
* Best means best by the proxy reward; what its gold reward then is shows how far the proxy can be trusted.
* `best_of_n_kl` is exact where no two answers are the same, and an upper bound where answers repeat.

Source: Nakano et al. 2021, "WebGPT", appendix on best-of-n (the estimator); Stiennon et al. 2020, appendix G.3 (the
KL); Gao et al. 2023, "Scaling laws for reward model overoptimization" (both, against the square root of the KL);
Beirami et al. 2024, "Theoretical guarantees on the alignment of best-of-n policy" (the bound).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def best_of_n(proxy: ArrayLike, values: ArrayLike, n: int) -> NDArray[np.float64]:
    """Expected value of the answer with the highest proxy reward among n, drawn without replacement from N.

    Answers whose proxy rewards are equal share the probability of being the best.

    Args:
        proxy: what the best is chosen by, shape (P, N): P prompts, N answers each.
        values: what is wanted of the chosen answer, shape (P, N); the proxy itself, or another reward.
        n: number of answers to choose from, 1 <= n <= N.

    Returns:
        Shape (P,), in the unit of `values`: the mean over all subsets of size n, hence unbiased.

    Raises:
        ValueError: shapes disagree, or n is not in 1..N.

    Source: Nakano et al. 2021; ties averaged by us.
    """
    proxy, values = (np.asarray(array, dtype=np.float64) for array in (proxy, values))
    if proxy.ndim != 2 or proxy.shape != values.shape:
        raise ValueError(f"proxy and values need one shape (P, N), not {proxy.shape} and {values.shape}")
    weights = rank_weights(proxy.shape[1], n)
    order = np.argsort(proxy, axis=1, kind="stable")
    ranked = np.take_along_axis(proxy, order, axis=1)
    return np.array([_shared(row, weights) @ v[o] for row, v, o in zip(ranked, values, order, strict=True)])


def rank_weights(total: int, n: int) -> NDArray[np.float64]:
    """Probability that the i-th lowest of N answers is the best of n that are drawn: C(i-1, n-1) / C(N, n).

    Args:
        total: N.
        n: how many are drawn.

    Returns:
        Shape (N,), for i = 1..N; sums to 1.

    Raises:
        ValueError: n is not in 1..N.
    """
    if not 1 <= n <= total:
        raise ValueError(f"the best of {n} can't be had from {total} answers")
    # From the top down, w_N = n / N and w_(i-1) = w_i (i - n) / (i - 1): no binomial that could overflow.
    i = np.arange(total, 1, -1, dtype=np.float64)
    ratios = np.maximum(i - n, 0.0) / (i - 1)
    return np.concatenate([[n / total], n / total * np.cumprod(ratios)])[::-1]


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n policy || policy it samples from), in nats: log n - (n - 1) / n.

    Source: Stiennon et al. 2020, appendix G.3.
    """
    return math.log(n) - (n - 1) / n


def doublings(total: int) -> list[int]:
    """1, 2, 4, ... up to N, and N itself."""
    return sorted({2**power for power in range(total.bit_length())} | {total})


def _shared(ranked: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights, averaged within runs of equal proxy rewards; both of shape (N,)."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(ranked) > 0]))
    sizes = np.diff(np.append(starts, len(ranked)))
    return np.repeat(np.add.reduceat(weights, starts) / sizes, sizes)
