"""Where the labels of a scatter plot stand: beside their points, clear of one another, further off where it is crowded.

One label after the other takes the cheapest of a fixed set of places around its point, given the others; a few rounds
of that suffice for a few dozen labels. Nothing is random.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DIRECTIONS = 16
_RINGS = 30
_ROUNDS = 5
_STEPS = 12  # points of a leader that are tested

# What a place costs, in steps away from the point.
_ON_A_LABEL, _OUTSIDE = 1e5, 1e4
_ON_A_POINT, _NEAR_ANOTHER_POINT, _LEADER_ON_A_LABEL, _ON_A_BAR = 200.0, 12.0, 40.0, 2.0


def place_labels(
    points: ArrayLike, sizes: ArrayLike, bars: ArrayLike, inside: ArrayLike, gap: float
) -> NDArray[np.float64]:
    """Lower left corner of each label.

    Args:
        points: what is labelled, shape (N, 2).
        sizes: width and height of each label, shape (N, 2).
        bars: boxes that labels had better not cover, as left, bottom, right, top, shape (M, 4).
        inside: box that labels must not leave, shape (4,).
        gap: distance of a label from its point where there is room, the radius of a point, and the step by which a
            label moves away.

    Returns:
        Shape (N, 2), in the unit of the arguments.
    """
    points, sizes, bars, inside = (np.asarray(part, dtype=np.float64) for part in (points, sizes, bars, inside))
    places = [_places(point, size, gap) for point, size in zip(points, sizes, strict=True)]
    fixed = [_fixed_cost(boxes, index, points, bars, inside, gap) for index, boxes in enumerate(places)]
    leaders = [_leaders(boxes, point) for boxes, point in zip(places, points, strict=True)]
    chosen = np.full((len(points), 4), np.nan)  # NaN: not placed yet, and covered by nothing
    for _ in range(_ROUNDS):
        for index, boxes in enumerate(places):
            others = np.delete(chosen, index, axis=0)
            crossed = _covered(np.concatenate([leaders[index]] * 2, axis=2).reshape(-1, 4), others)
            cost = fixed[index] + _ON_A_LABEL * _covered(boxes, others)
            cost = cost + _LEADER_ON_A_LABEL * (crossed.reshape(len(boxes), -1) > 0).any(axis=1)
            chosen[index] = boxes[np.argmin(cost)]
    return chosen[:, :2]


def _places(point: NDArray, size: NDArray, gap: float) -> NDArray[np.float64]:
    """Boxes on rings around a point, (P, 4); of a ring, right of the point first, then left, then above and below."""
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    angles = angles[np.argsort(-np.abs(np.cos(angles)) - 0.01 * np.cos(angles), kind="stable")]
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (D, 2)
    distance = gap * (1.5 + np.arange(_RINGS))[:, None, None]  # (R, 1, 1)
    centre = point + direction * (distance + size / 2)  # (R, D, 2)
    corner = (centre - size / 2).reshape(-1, 2)
    return np.concatenate([corner, corner + size], axis=1)


def _fixed_cost(
    boxes: NDArray, index: int, points: NDArray, bars: NDArray, inside: NDArray, gap: float
) -> NDArray[np.float64]:
    """What a place costs whatever the other labels do, shape (P,)."""
    ring = np.arange(len(boxes)) // _DIRECTIONS
    beyond = np.maximum(inside[:2] - boxes[:, :2], 0).sum(axis=1) + np.maximum(boxes[:, 2:] - inside[2:], 0).sum(axis=1)
    distance = np.stack([_distance(boxes, point) for point in points])  # (N, P)
    others = np.delete(distance, index, axis=0)
    return (
        ring
        + _OUTSIDE * (beyond > 0) * (1 + beyond / gap)
        + _ON_A_POINT * (distance < gap).sum(axis=0)
        + _NEAR_ANOTHER_POINT * (others < distance[index] + gap).sum(axis=0)
        + _ON_A_BAR * _covered(boxes, bars)
    )


def _leaders(boxes: NDArray, point: NDArray) -> NDArray[np.float64]:
    """Points on the way from a point to the nearest of each box, (P, steps, 2)."""
    nearest = np.clip(point, boxes[:, :2], boxes[:, 2:])
    return point + np.linspace(0.0, 1.0, _STEPS)[None, :, None] * (nearest - point)[:, None, :]


def _distance(boxes: NDArray, point: NDArray) -> NDArray[np.float64]:
    return np.hypot(*(np.clip(point, boxes[:, :2], boxes[:, 2:]) - point).T)


def _covered(boxes: NDArray, others: NDArray) -> NDArray[np.float64]:
    """How many of the others each box overlaps, shape (P,)."""
    if not len(others):
        return np.zeros(len(boxes))
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (low <= high).all(axis=2).sum(axis=1).astype(np.float64)
