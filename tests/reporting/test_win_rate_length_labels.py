import numpy as np
import pytest

from vrm.reporting.win_rate_length import place_labels

INSIDE = (0, 0, 400, 300)


def boxes_of(corners, sizes):
    return np.concatenate([corners, corners + sizes], axis=1)


def overlapping(boxes):
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    both = (low < high).all(axis=2)
    return both.sum() - len(boxes)


def distances(boxes, points):
    """From each box, to each point."""
    nearest = np.clip(points[None, :, :], boxes[:, None, :2], boxes[:, None, 2:])
    return np.hypot(*np.moveaxis(nearest - points[None, :, :], 2, 0))


@pytest.mark.parametrize("seed", range(6))
def test_labels_are_apart_inside_and_on_no_point(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform((20, 20), (380, 280), (14, 2))
    points[:5] = rng.normal((200, 150), 9, (5, 2))  # a crowd
    sizes = np.column_stack([rng.uniform(20, 90, 14), rng.choice([9, 18], 14)])
    boxes = boxes_of(place_labels(points, sizes, np.zeros((0, 4)), INSIDE, 3.0), sizes)
    assert overlapping(boxes) == 0
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (400, 300)).all()
    assert distances(boxes, points).min() > 2


def test_a_lone_label_stands_right_of_its_point_and_left_of_it_at_the_edge():
    sizes = np.array([[50, 10]])
    for point, corner in (((100, 100), (104.5, 95)), ((390, 100), (335.5, 95))):
        assert place_labels([point], sizes, np.zeros((0, 4)), INSIDE, 3.0)[0] == pytest.approx(corner)


def test_a_label_is_nearest_to_its_own_point():
    points = np.array([[100.0, 100.0], [112.0, 100.0], [106.0, 110.0]])
    sizes = np.full((3, 2), (40, 10))
    boxes = boxes_of(place_labels(points, sizes, np.zeros((0, 4)), INSIDE, 3.0), sizes)
    assert distances(boxes, points).argmin(axis=1).tolist() == [0, 1, 2]


def test_a_bar_is_avoided_where_that_is_cheap():
    bars = np.array([[120, 0, 122, 300]])
    corner = place_labels([(100, 100)], [(50, 10)], bars, INSIDE, 3.0)[0]
    assert corner[0] + 50 < 120


def test_equal_inputs_give_equal_places():
    rng = np.random.default_rng(0)
    points, sizes = rng.uniform(50, 250, (9, 2)), np.full((9, 2), (60, 9))
    first, second = (place_labels(points, sizes, np.zeros((0, 4)), INSIDE, 3.0) for _ in range(2))
    assert np.array_equal(first, second)
