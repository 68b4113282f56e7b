import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from molmoact2_jax.data import norm_stats, normalize

LINES = norm_stats.TagStats(
    mean=(1.0, 2.0, 3.0), std=(0.5, 2.0, 0.0), min=(-1.0, 0.0, 0.0), max=(3.0, 9.0, 8.0), q01=(0.0, 1.0, 1.0),
    q10=(0.2, 1.5, 2.0), q90=(1.5, 3.0, 4.0), q99=(2.0, 4.0, 5.0),
)  # fmt: skip
MODES = ("min_max", "q01_q99", "q10_q90", "mean_std", "none")


def _tag(stats, **options):
    return norm_stats.Tag(action=stats, **options)


@pytest.fixture(params=["tiny", "tiny_think", "tiny_think_random"])
def archive(request, golden):
    directory = golden / request.param
    return norm_stats.load(directory / "norm_stats.json"), np.load(directory / "golden.npz")


CASES = [(0, "libero"), (1, "yam"), (2, "libero")]


@pytest.mark.parametrize(("case", "name"), CASES)
def test_released_states_are_normalised_to_the_bit(archive, case, name):
    stats, arrays = archive
    result = normalize.normalize(arrays[f"case{case}/state"], stats.tag(name).state, stats.mode)
    np.testing.assert_array_equal(result, arrays[f"case{case}/normalized_state"])
    assert result.dtype == np.float32


@pytest.mark.parametrize(("case", "name"), CASES)
def test_released_trajectories_become_the_released_actions_to_the_bit(archive, case, name):
    stats, arrays = archive
    tag = stats.tag(name)
    actions = normalize.unnormalize(arrays[f"case{case}/trajectory"], normalize.inverse(tag, stats.mode))
    expected = arrays[f"case{case}/actions_continuous"]
    np.testing.assert_array_equal(actions[:, : tag.n_action_steps, : tag.action.width], expected)


def test_documented_example():
    stats = norm_stats.TagStats(
        q01=(0, 0, 0, 1), q99=(10, 10, 0, 1), min=(0, 0, 0, 1), max=(10, 10, 5, 1), mask=(True, False, True, True)
    )
    assert normalize.normalize([2.5, 7, 3, 1], stats, "q01_q99").tolist() == [-0.5, 7, 1, 0]
    undo = normalize.inverse(_tag(stats), "q01_q99", width=4)
    assert normalize.unnormalize(np.float32([-0.5, 7, 3, 0.3]), undo).tolist() == [2.5, 1, 0, 1]


@pytest.mark.parametrize("mode", MODES)
def test_values_inside_the_bounds_come_back(mode):
    stats = dataclasses.replace(LINES, std=(0.5, 2.0, 0.1), mask=(True, True, False))
    values = np.random.default_rng(0).uniform([0.3, 1.6, -0.9], [1.4, 2.9, 0.9], (50, 3)).astype(np.float32)
    normal = normalize.normalize(values, stats, mode)
    back = normalize.unnormalize(normal, normalize.inverse(_tag(stats), mode, width=3))
    np.testing.assert_allclose(back, values, rtol=2e-6)
    np.testing.assert_array_equal(normal[:, 2], values[:, 2])
    assert (mode == "none") == np.array_equal(normal, values)


@pytest.mark.parametrize("mode", ["min_max", "q01_q99", "q10_q90"])
def test_modes_with_bounds_clip_both_ways(mode):
    normal = normalize.normalize(np.float32([[-50] * 3, [50] * 3]), LINES, mode)
    assert normal.tolist() == [[-1] * 3, [1] * 3]
    low, high = normalize.BOUNDS[mode]
    undo = normalize.inverse(_tag(LINES), mode, width=3)
    ends = normalize.unnormalize(np.float32([[-7] * 3, [7] * 3]), undo)
    np.testing.assert_allclose(ends, [getattr(LINES, low), getattr(LINES, high)], rtol=1e-6)


def test_mean_and_deviation_do_not_clip():
    assert normalize.normalize([51, 2, 3], LINES, "mean_std").tolist() == [100, 0, 0]
    undo = normalize.inverse(_tag(LINES), "mean_std", width=3)
    assert normalize.unnormalize(np.float32([100, 0, 0]), undo).tolist() == [51, 2, 3]


def test_nan_passes_through():
    assert np.isnan(normalize.normalize([np.nan, 1, 1], LINES, "q01_q99")[0])


def test_constant_channels_become_zero_whatever_they_hold():
    stats = dataclasses.replace(LINES, max=LINES.min, mask=(False, True, True))
    assert normalize.normalize([5, 5, 5], stats, "q01_q99").tolist() == [0, 0, 0]


def test_without_statistics_values_stay():
    values = np.float32([5, -7])
    np.testing.assert_array_equal(normalize.normalize(values, None, "q01_q99"), values)
    np.testing.assert_array_equal(normalize.unnormalize(values, normalize.inverse(_tag(None), "q01_q99", 2)), values)


def test_wrong_width_names_the_channels():
    stats = dataclasses.replace(LINES, names=("x", "y", "grip"))
    with pytest.raises(ValueError, match=r"shape \(1,\), expected 3 channels \['x', 'y', 'grip'\]"):
        normalize.normalize([1.0], stats, "q01_q99")
    with pytest.raises(ValueError, match="3 channels, expected at most 2"):
        normalize.inverse(_tag(stats), "q01_q99", width=2)


@pytest.mark.parametrize("mode", MODES)
def test_padding_channels_changes_none_of_the_robots(mode):
    values = np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32)
    wide = normalize.unnormalize(values, normalize.inverse(_tag(LINES), mode))
    narrow = normalize.unnormalize(values[:, :3], normalize.inverse(_tag(LINES), mode, width=3))
    np.testing.assert_array_equal(wide[:, :3], narrow)


@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_program_undoes_it_with_the_arrays_as_arguments(mode):
    values = np.random.default_rng(2).normal(size=(4, 32)).astype(np.float32)
    undo = normalize.inverse(_tag(LINES, joint_signs=(1.0, -1.0), joint_offsets=(0.0, 90.0)), mode)
    compiled = jax.jit(normalize.unnormalize)(values, undo)
    assert isinstance(compiled, jax.Array)
    np.testing.assert_allclose(compiled, normalize.unnormalize(values, undo), rtol=1e-6, atol=1e-6)


def test_joint_convention_of_newer_arms_round_trips():
    tag = _tag(None, joint_signs=(1.0, -1.0, 1.0), joint_offsets=(0.0, 90.0, 90.0))
    arm = np.float32([[10, 20, 30, 40]])
    model = normalize.to_model_joints(arm, tag)
    assert model.tolist() == [[10, 70, 120, 40]]
    np.testing.assert_array_equal(normalize.unnormalize(model, normalize.inverse(tag, "none", width=4)), arm)
    assert arm.tolist() == [[10, 20, 30, 40]]


def test_without_a_joint_convention_states_stay():
    np.testing.assert_array_equal(normalize.to_model_joints([1.5, 2.5], _tag(None)), [1.5, 2.5])


def test_states_fall_into_the_documented_bins():
    values = [0, -1, 1, np.nan, np.inf, -np.inf, 0.5, 0.1, -0.003921569, 9, -9]
    assert normalize.state_bins(values).tolist() == [128, 0, 255, 128, 255, 0, 191, 140, 127, 255, 0]


def test_bins_grow_with_the_value_and_use_every_token():
    bins = normalize.state_bins(np.linspace(-1, 1, 5001))
    assert (np.diff(bins) >= 0).all() and set(bins.tolist()) == set(range(256))
    assert set(normalize.state_bins(np.linspace(-1, 1, 99), 4).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("archive", ["tiny", "tiny_think", "tiny_think_random"])
def test_state_bins_are_those_of_the_released_prompts(archive, golden):
    stats, arrays = norm_stats.load(golden / archive / "norm_stats.json"), np.load(golden / archive / "golden.npz")
    for case, entry in enumerate(json.loads((golden / archive / "golden.json").read_text())["cases"]):
        tag = stats.tag(entry["tag"])
        bins = normalize.state_bins(normalize.normalize(arrays[f"case{case}/state"], tag.state, stats.mode))
        assert f"<state_start>{''.join(f'<state_{b}>' for b in bins)}<state_end>" in entry["prompt"]


DEAD = dataclasses.replace(LINES, q01=(0.0, 4.0, 1.0), names=("x", "grip", "z"))


def test_a_channel_that_moves_on_a_vanishing_scale_is_refused_by_name():
    assert normalize.dead_scales(LINES, "q01_q99") == ()
    with pytest.raises(normalize.DeadScaleError, match=r"arm\.action: dead scale in channel 1 \(grip\): q99 - q01 = 0"):
        normalize.check_scales(DEAD, "q01_q99", "arm.action")


def test_a_dead_scale_that_is_allowed_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        normalize.check_scales(DEAD, "q01_q99", "arm.action", allow_dead=True)
    assert "channel 1 (grip)" in caplog.text


def test_masked_constant_and_unbounded_channels_are_not_dead():
    assert normalize.dead_scales(dataclasses.replace(DEAD, mask=(True, False, True)), "q01_q99") == ()
    assert normalize.dead_scales(dataclasses.replace(DEAD, min=(-1.0, 9.0, 0.0)), "q01_q99") == ()
    assert normalize.dead_scales(DEAD, "none") == normalize.dead_scales(DEAD, "min_max") == ()
    assert len(normalize.dead_scales(LINES, "mean_std")) == 1
