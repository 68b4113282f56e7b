import numpy as np

from molmoact2_jax.eval import trajectory


def test_a_constant_command_is_perfectly_smooth():
    assert trajectory.roughness(np.ones((10, 3))) == 0.0


def test_a_command_that_flips_is_rougher_than_one_that_drifts():
    steps = np.arange(10)[:, None]
    assert trajectory.roughness((-1.0) ** steps) > 10 * trajectory.roughness(np.sin(steps / 10))


def test_scaling_the_command_changes_no_roughness():
    actions = np.random.default_rng(0).normal(size=(12, 2))
    np.testing.assert_allclose(trajectory.roughness(3 * actions), trajectory.roughness(actions))


def test_seams_are_rough_where_every_plan_starts_anew():
    actions = np.concatenate([np.linspace(0, 1, 5)[:, None], np.linspace(3, 4, 5)[:, None]])
    assert trajectory.seam_ratio(actions, [5, 5]) == 2 / 0.25
    np.testing.assert_allclose(trajectory.seam_ratio(np.arange(8.0)[:, None], [4, 4]), 1.0)
    assert np.isnan(trajectory.seam_ratio(actions, [10]))


def test_saturation_counts_both_bounds_per_channel():
    actions = np.array([[-1.0, 0.0], [1.0, 0.5], [0.0, 0.999999], [1.0, 0.0]])
    np.testing.assert_allclose(trajectory.saturation(actions, np.full(2, -1.0), np.full(2, 1.0)), [0.75, 0.25])
