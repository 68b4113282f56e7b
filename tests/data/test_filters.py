import numpy as np
import pytest

from molmoact2_jax.data import filters, memory


def episode(moves, task="pick up the cup"):
    """One channel that moves by 0.1 on the way from each frame where `moves` is true."""
    steps = np.concatenate([[0.0], 0.1 * np.asarray(moves, float)[:-1]])
    state = np.cumsum(steps)[:, None].astype(np.float32)
    return memory.Episode(state, state, {"image": np.zeros((len(moves), 2, 2, 3), np.uint8)}, task)


def source(*episodes):
    return memory.MemorySource("own", episodes, fps=10.0)


def named(source, **rules):
    return [(e.episode, e.frame) for e in filters.entries(source, filters.Rules(**rules))]


def test_no_rule_leaves_nothing_out():
    assert named(source(episode([0] * 20), episode([1] * 3))) == []


def test_idle_frames_and_moving_segments_shorter_than_a_second_are_left_out():
    moves = [1] * 12 + [0] * 5 + [1] * 4 + [0] * 3 + [1] * 10
    expected = [(0, frame) for frame in range(12, 24)]
    assert named(source(episode(moves)), idle=0.01, min_seconds=1.0) == expected


def test_an_episode_without_motion_is_left_out_whole():
    assert named(source(episode([1] * 20), episode([0] * 20)), idle=0.01) == [(1, None)]


def test_short_episodes_and_tasks_are_left_out_by_name():
    made = source(episode([1] * 20, "evaluate the policy"), episode([1] * 5), episode([1] * 20, "push the block"))
    assert named(made, min_seconds=1.0) == [(1, None)]
    assert named(made, drop_task="(?i)eval") == [(0, None)]
    assert named(made, keep_task="push") == [(0, None), (1, None)]


def test_frames_that_are_quarantined_already_are_not_named_again():
    made = source(episode([1] * 10 + [0] * 4))
    made.valid[10:12] = False
    assert named(made, idle=0.01) == [(0, 12), (0, 13)]


def test_kept_segments_are_exactly_the_long_runs():
    rng = np.random.default_rng(3)
    for shortest in range(6):
        moves = rng.random(200) < 0.7
        kept = filters.segments(moves, shortest)
        assert not (kept & ~moves).any()
        runs = "".join("x" if k else " " for k in kept).split()
        assert all(len(run) >= shortest for run in runs)
        lost = "".join("x" if m and not k else " " for m, k in zip(moves, kept)).split()
        assert all(len(run) < shortest for run in lost)


def test_rules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="idle 2"):
        filters.Rules(idle=2)
    with pytest.raises(ValueError, match="no regular expression"):
        filters.Rules(drop_task="(")
