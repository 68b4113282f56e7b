import re

import pytest


@pytest.fixture(scope="module")
def shown(execute):
    return execute("04_flow_objective").text


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def test_the_convention_and_the_times_are_the_released_ones(shown):
    assert "t = 0 is noise, t = 1 is data" in shown
    assert abs(number(r"mean (0\.\d+)", shown) - 0.4006) < 0.01


def test_the_variance_of_a_chunk_falls_with_the_number_of_samples(shown):
    assert -1.15 < number(r"falls as K\^(-\d\.\d+)", shown) < -0.85


def test_euler_is_of_first_order_and_the_others_of_second(shown):
    orders = [number(rf"{name} +order (\d\.\d)", shown) for name in ("euler", "midpoint", "heun")]
    assert 0.7 < orders[0] < 1.3 and all(1.6 < order < 2.6 for order in orders[1:])


def test_objectives_of_the_registry_train_a_field_that_leads_to_the_data(shown):
    best, released, own = (int(share) for share in re.findall(r"(\d+)% of the points end in a cluster", shown))
    assert best > 95 and released > 70 and own > 40
