"""Values of seeds and pairs, summed within prompts and grouped by stratum: what every interval starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Stratum:
    """Values of one stratum, summed within clusters; S seeds, C clusters.

    Args:
        share: weight of the stratum's mean in the statistic; shares sum to 1.
        sums: weighted sum of the values of each cluster, shape (S, C).
        sizes: sum of the weights of each cluster's values, shape (C,); their number where nothing is weighted.
    """

    share: float
    sums: NDArray[np.float64]
    sizes: NDArray[np.float64]

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean of each seed, shape (S,)."""
        return self.sums.sum(axis=1) / self.sizes.sum()


def stratify(
    values: ArrayLike,
    clusters: ArrayLike,
    strata: ArrayLike | None = None,
    weights: Mapping[str, float] | None = None,
    item_weights: ArrayLike | None = None,
) -> list[Stratum]:
    """The strata of a mean, in the order of their names.

    Args:
        values: one value a seed and pair, shape (S, N) or (N,).
        clusters: the prompt of each pair, shape (N,).
        strata: name of each pair's stratum, shape (N,). None: one stratum.
        weights: weight of each stratum's mean. None: a stratum counts as much as its pairs.
        item_weights: weight of each pair within its stratum, shape (N,), > 0. None: every pair counts the same.

    Raises:
        ValueError: there is no pair, shapes disagree, a stratum has no weight, or a pair's weight is not above 0.
    """
    grid, clusters = np.atleast_2d(np.asarray(values, dtype=np.float64)), np.asarray(clusters)
    pairs = grid.shape[1]
    if pairs == 0:
        raise ValueError("no pair to average over")
    names = np.full(pairs, "") if strata is None else np.asarray(strata)
    items = np.ones(pairs) if item_weights is None else np.asarray(item_weights, dtype=np.float64)
    if any(array.shape != (pairs,) for array in (clusters, names, items)):
        raise ValueError(f"clusters, strata and item weights need one entry for each of the {pairs} pairs")
    if not (np.isfinite(items) & (items > 0)).all():
        raise ValueError("the weight of a pair must be a number above 0; leave pairs that do not count out")
    found = sorted(set(names.tolist()))
    missing = [name for name in found if weights is not None and name not in weights]
    if missing:
        raise ValueError(f"no weight for stratum {', '.join(missing)}")
    members = [names == name for name in found]
    mass = np.array([items[m].sum() if weights is None else weights[n] for n, m in zip(found, members, strict=True)])
    return [
        _sum_clusters(grid[:, inside], clusters[inside], items[inside], float(share))
        for inside, share in zip(members, mass / mass.sum(), strict=True)
    ]


def _sum_clusters(grid: NDArray[np.float64], clusters: NDArray, items: NDArray[np.float64], share: float) -> Stratum:
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.stack([np.bincount(index, weights=row * items) for row in grid])
    return Stratum(share, sums, np.bincount(index, weights=items))
