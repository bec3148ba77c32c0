from __future__ import annotations

import pytest

from genevolve_ray.viewer.scale import Scale


def test_all_values_lie_inside_in_their_order() -> None:
    scale = Scale.around([0.5, 0.2, 0.8])
    places = [scale.place(v) for v in (0.2, 0.5, 0.8)]
    assert 0 < places[0] < places[1] < places[2] < 100
    assert places[1] == pytest.approx(50)
    assert scale.inner() == pytest.approx((0.2, 0.8))


def test_one_value_stands_in_the_middle() -> None:
    assert Scale.around([0.7, 0.7]).place(0.7) == pytest.approx(50)
    assert Scale.around([]) == Scale(0.0, 1.0)


def test_half_an_interval_is_not_drawn_and_zero_only_where_it_lies_on_the_scale() -> None:
    mark = Scale(-1.0, 1.0).mark(0.5, 0.4, None, [0.0])
    assert (mark.mean, mark.low, mark.high, mark.points, mark.zero) == (75, None, None, (50,), 50)
    assert Scale(0.2, 1.0).mark(None, 0.4, 0.6).zero is None
