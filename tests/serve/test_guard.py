import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from molmoact2_jax.data import norm_stats, normalize, stats
from molmoact2_jax.serve import guard

NAMES = ("shoulder", "elbow", "wrist", "Gripper.pos")
EPISODES = hnp.arrays(
    np.float32, st.tuples(st.integers(2, 40), st.just(4)), elements=st.floats(-100, 100, width=32)
).map(lambda a: a + np.float32(0))  # one zero


def tag_of(frames, *, max_step=None, mask=(True, True, True, False), **facts):
    """The tag that `data stats` would write for these frames, f32[N, D]."""
    found = stats.exact([frames], NAMES, mask)
    action = dataclasses.replace(found, max_step=None if max_step is None else tuple(max_step.tolist()))
    return norm_stats.Tag(action=action, state=found, **facts)


def largest_step(frames):
    return np.abs(np.diff(frames.astype(np.float64), axis=0)).max(axis=0)


def wave(length=63, seed=0):
    """A smooth episode whose gripper opens and closes at once."""
    t = np.arange(length)[:, None] / 10
    joints = np.sin(t + np.arange(3)) * [1, 20, 0.1]
    return np.concatenate([joints, np.random.default_rng(seed).integers(0, 2, (length, 1))], axis=1).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(EPISODES, st.booleans())
def test_demonstrations_never_break_a_limit_that_was_derived_from_them(frames, stored):
    tag = tag_of(frames, max_step=largest_step(frames) if stored else None)
    for mode in guard.ACTION_MODES:
        sent, counts = guard.release(frames, guard.limits(tag), mode)
        assert sent is frames
        assert counts == guard.Counts()
    for row in frames:
        assert guard.check_state(row, tag, guard.Options(states="refuse", margin=0)) == guard.Counts()


@pytest.mark.parametrize("joints", [None, ((1.0, -1.0, 1.0, 1.0), (0.0, 90.0, 90.0, 0.0))])
def test_demonstrations_through_the_model_and_back_break_no_limit(joints):
    frames = wave()
    facts = {} if joints is None else dict(joint_signs=joints[0], joint_offsets=joints[1])
    tag = tag_of(frames, max_step=largest_step(frames), mask=(True,) * 4, **facts)
    undo = normalize.inverse(tag, "min_max", 4)
    arm = normalize.unnormalize(normalize.normalize(frames, tag.action, "min_max"), undo)
    sent, counts = guard.release(arm, guard.limits(tag), "clamp")
    assert sent is arm and counts == guard.Counts()
    for row in arm:
        assert not guard.check_state(row, tag, guard.Options(states="refuse")).state


@settings(max_examples=200, deadline=None)
@given(EPISODES, EPISODES)
def test_whatever_comes_in_what_goes_out_is_within_the_limits_and_the_rest_keeps_its_bits(frames, chunk):
    bounds = guard.limits(tag_of(frames, max_step=largest_step(frames)))
    sent, counts = guard.release(chunk, bounds, "clamp")
    rounding = 1e-5 * (1 + np.maximum(np.abs(bounds.low), np.abs(bounds.high)))
    assert (sent >= bounds.low - rounding).all() and (sent <= bounds.high + rounding).all()
    assert (np.abs(np.diff(sent.astype(np.float64), axis=0)) <= bounds.step + rounding).all()
    assert sum(counts.changed.values()) == (sent != chunk).sum()
    again, clean = guard.release(sent, bounds, "warn")
    assert again is sent and not clean.out_of_range


def test_a_jump_becomes_a_ramp_and_later_steps_follow_what_was_sent():
    frames = np.zeros((5, 4), np.float32)
    frames[:, 0] = [0, 1, 2, 3, 4]
    bounds = guard.limits(tag_of(frames, max_step=largest_step(frames)))
    chunk = np.zeros((5, 4), np.float32)
    chunk[:, 0] = [0, 3, 3, 3, 9]
    sent, counts = guard.release(chunk, bounds, "clamp")
    assert sent[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert counts.to_json() == {
        "out_of_range": {"shoulder": 1}, "jumps": {"shoulder": 1}, "changed": {"shoulder": 3}, "state": {}
    }  # fmt: skip
    warned, same = guard.release(chunk, bounds, "warn")
    assert warned is chunk and same.jumps == counts.jumps and not same.changed
    assert guard.release(chunk, bounds, "off") == (chunk, guard.Counts())


def test_grippers_open_at_once_and_may_overshoot_a_little():
    frames = wave()
    bounds = guard.limits(tag_of(frames, max_step=largest_step(frames) * 0.001))
    chunk = np.repeat(frames[:1], 3, axis=0)
    chunk[:, 3] = [-0.05, 1.05, -0.05]
    assert guard.release(chunk, bounds, "clamp")[0] is chunk
    chunk[1, 3] = 1.5
    sent, counts = guard.release(chunk, bounds, "clamp")
    assert sent[1, 3] == np.float32(1.1) and counts.out_of_range == {"Gripper.pos": 1} and not counts.jumps


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", guard.ACTION_MODES)
def test_actions_that_are_not_finite_are_an_error_in_every_mode(mode, value):
    chunk = wave(4)
    chunk[2, 1] = value
    with pytest.raises(guard.ActionError, match=r"actions: not finite in channels \['elbow'\], first at step 2"):
        guard.release(chunk, guard.limits(tag_of(wave())), mode)


def test_without_extremes_there_is_no_range_and_nothing_is_made_up():
    tag = tag_of(wave())
    bare = dataclasses.replace(tag, action=dataclasses.replace(tag.action, min=None, max=None))
    chunk = 1e6 * wave(4)
    assert guard.release(chunk, guard.limits(bare), "clamp")[0] is chunk


def test_the_source_of_the_step_limit_is_told():
    assert guard.limits(tag_of(wave())).step_source == "range"
    assert guard.limits(tag_of(wave(), max_step=np.ones(4))).step_source == "max_step"


def test_negative_step_limits_are_refused():
    with pytest.raises(ValueError, match=r"action_stats\.max_step: .*expected numbers that are not negative"):
        guard.limits(tag_of(wave(), max_step=np.array([1, 1, 1, -1])))


def test_a_state_in_degrees_is_counted_or_refused_with_its_bounds():
    tag, state = tag_of(wave()), wave()[3]
    state[0] = 57.3
    assert guard.check_state(state, tag, guard.Options()).state == {"shoulder": 1}
    with pytest.raises(guard.StateRangeError, match=r"state: out of .*shoulder = 57\.3 \(expected -1\.\d+ to 1\.\d+\)"):
        guard.check_state(state, tag, guard.Options(states="refuse"))
    assert not guard.check_state(state, tag, guard.Options(states="off")).state


def test_a_channel_that_never_moved_is_not_checked_since_the_model_does_not_see_it():
    frames = wave()
    frames[:, 2] = 4
    state = frames[0] + np.float32([0, 0, 9, 0])
    assert not guard.check_state(state, tag_of(frames), guard.Options(margin=0)).state


def test_a_wider_margin_accepts_more():
    tag, state = tag_of(wave()), wave()[3]
    state[0] = 2
    assert guard.check_state(state, tag, guard.Options(margin=0.1)).state
    assert not guard.check_state(state, tag, guard.Options(margin=1)).state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(actions="hold"), "guard actions: 'hold', expected one of"),
        (dict(states="clamp"), "guard states: 'clamp', expected one of"),
        (dict(margin=-1.0), "guard margin: -1.0"),
        (dict(margin=np.nan), "guard margin: nan"),
    ],
)
def test_modes_and_margins_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        guard.Options(**options)


def test_another_number_of_pictures_names_the_cameras_in_order():
    guard.check_cameras(2, ("top", "left"))
    with pytest.raises(ValueError, match=r"images: 1, expected 2 \(top, left\)"):
        guard.check_cameras(1, ("top", "left"))


def test_counts_add_up():
    total = guard.Counts()
    for _ in range(2):
        total.add(guard.Counts(jumps=guard.collections.Counter(a=2)))
    assert total.to_json() == {"out_of_range": {}, "jumps": {"a": 4}, "changed": {}, "state": {}}
