import numpy as np
import pytest
import scipy.stats

from molmoact2_jax.eval import intervals


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (20, 20), (14, 20), (85, 120), (1, 3)])
def test_it_equals_the_interval_of_scipy(successes, trials):
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(intervals.wilson(successes, trials), expected, atol=1e-6)


def test_it_covers_the_true_rate_about_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(40, 0.7, size=2000)
    covered = np.mean([low <= 0.7 <= high for low, high in (intervals.wilson(int(n), 40) for n in draws)])
    assert 0.92 < covered < 0.98


def test_without_trials_everything_is_possible():
    assert intervals.wilson(0, 0) == (0.0, 1.0)


def test_more_successes_than_trials_are_refused():
    with pytest.raises(ValueError, match="between 0 and 3"):
        intervals.wilson(4, 3)
