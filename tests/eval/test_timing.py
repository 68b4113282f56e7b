import pytest

from molmoact2_jax.eval import timing


def test_percentiles_lie_between_the_fastest_and_the_slowest():
    found = timing.Times((4.0, 1.0, 3.0, 2.0)).summary()
    assert found["min"] == 1.0
    assert found["p50"] == found["mean"] == 2.5
    assert 2.5 < found["p95"] < found["p99"] < 4.0
    assert found["samples"] == 4


def test_times_of_the_same_rounds_add_and_scale_sample_by_sample():
    a, b = timing.Times((1.0, 5.0)), timing.Times((10.0, 20.0))
    assert (a + b.scaled(2)).samples == (21.0, 45.0)


def test_rounds_run_every_work_in_turn_and_count_only_what_follows_the_warmup():
    order, told = [], []
    work = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = timing.rounds(work, 3, 2, lambda done, total: told.append((done, total)))
    assert order == ["a", "b"] * 5
    assert {name: len(times.samples) for name, times in taken.items()} == {"a": 3, "b": 3}
    assert told[-1] == (5, 5)


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="expected at least 1"):
        timing.rounds({}, 0, 1)
