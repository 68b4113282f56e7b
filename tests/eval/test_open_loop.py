import dataclasses

import numpy as np
import pytest

from molmoact2_jax.data import catalog, norm_stats
from molmoact2_jax.envs import experts, registry
from molmoact2_jax.eval import collect, demonstrations, open_loop

HORIZON = 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    order = collect.Order("toy", ("go-red", "go-blue"), 3, disturbance=experts.CLEAN)
    collect.collect(order, root, num_processes=0)
    return root


def opened(directory, kind):
    env = registry.open_environment("toy", "go-red")
    meaning = {
        "lerobot": demonstrations.tag_of(env.spec),
        "rlds": demonstrations.row_of(env.spec),
    }[kind]
    return catalog.open_source(directory / kind, meaning)


def make_tag(width=2, cameras=("observation.images.top",)):
    stats = norm_stats.TagStats(q01=(-1.0,) * width, q99=(1.0,) * width)
    return norm_stats.Tag(action=stats, state=stats, horizon=HORIZON, cameras=cameras)


def knowing(source, offset):
    """A policy that knows the dataset by heart, up to an offset f32[A, C] per seed."""

    def plan(observations, seeds):
        assert len(observations) == 4
        plans = []
        for one, (seed, episode, frame) in zip(observations, seeds):
            np.testing.assert_array_equal(one.state, source.state(episode, frame))
            plans.append(source.chunk(episode, frame, HORIZON).actions + offset * (1 + seed))
        return plans

    return plan


@pytest.mark.parametrize("kind", ["lerobot", "rlds"])
def test_errors_are_those_that_were_put_in(directory, kind):
    source = opened(directory, kind)
    offset = np.zeros((HORIZON, 2), np.float32)
    offset[:, 1] = np.arange(HORIZON) / 10
    setting = open_loop.Setting(open_loop.held_out(source, 2), seeds=(0, 1), batch=4)
    found = open_loop.compare(knowing(source, offset), source, make_tag(), "toy", setting)
    facts = open_loop.summary(found, make_tag().action)
    assert facts["channels"]["x"]["error"] == 0 and facts["channels"]["x"]["spread"] == 0
    np.testing.assert_allclose(facts["steps"]["y"], 1.5 * offset[:, 1], atol=1e-6)
    np.testing.assert_allclose(
        facts["normalised_by_seed"], np.array([1, 2]) * np.nanmean(found.error[0][..., 1]) / 2, atol=1e-5
    )
    assert facts["episodes"] == 2 and set(facts["tasks"]) == set(registry.adapter("toy").instructions().values())
    assert facts["frames"] == source.episode_lengths[-2:].sum()


def test_steps_past_the_end_of_an_episode_do_not_count(directory):
    source = opened(directory, "lerobot")
    plan = knowing(source, np.zeros((HORIZON, 2), np.float32))

    def wrong_past_the_end(observations, seeds):
        chunks = [source.chunk(episode, frame, HORIZON) for _, episode, frame in seeds]
        return [a + 9 * ~chunk.valid[:, None] for a, chunk in zip(plan(observations, seeds), chunks)]

    setting = open_loop.Setting((0,), batch=4)
    found = open_loop.compare(wrong_past_the_end, source, make_tag(), "toy", setting)
    assert not found.valid.all() and np.nanmax(found.error) == 0
    assert open_loop.summary(found, None)["steps"]["x"] == [0.0] * HORIZON


def test_a_constant_prediction_is_as_good_as_the_baseline(directory):
    source = opened(directory, "lerobot")
    setting = open_loop.Setting((0, 1, 2), seeds=(0,), batch=4)
    exact = open_loop.compare(knowing(source, np.zeros((HORIZON, 2), np.float32)), source, make_tag(), "toy", setting)
    mean = exact.recorded[exact.valid].mean(axis=0)
    constant = dataclasses.replace(exact, predicted=np.broadcast_to(mean, exact.predicted.shape))
    facts = open_loop.summary(constant, None)
    for channel in facts["channels"].values():
        np.testing.assert_allclose(channel["error"], channel["constant"], atol=1e-5)


def test_few_frames_spread_over_the_episode(directory):
    source = opened(directory, "lerobot")
    setting = open_loop.Setting((0,), frames=2, seeds=(0,), batch=4)
    found = open_loop.compare(knowing(source, np.zeros((HORIZON, 2), np.float32)), source, make_tag(), "toy", setting)
    assert found.frame.tolist() == [0, source.episode_lengths[0] - 1]


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        (make_tag(width=7), r"2 action channels \(x, y\), expected 7 of norm_tag 'toy'"),
        (make_tag(cameras=("observation.images.wrist",)), "expected .*wrist"),
    ],
)
def test_a_dataset_of_another_robot_is_refused_in_words(directory, tag, words):
    with pytest.raises(ValueError, match=words):
        open_loop.compare(lambda o, s: [], opened(directory, "lerobot"), tag, "toy", open_loop.Setting((0,)))


def test_holding_out_more_than_there_is_is_refused(directory):
    with pytest.raises(ValueError, match="expected 1 to 6"):
        open_loop.held_out(opened(directory, "lerobot"), 7)


def test_drawings_are_written_for_each_task(directory, tmp_path):
    plots = pytest.importorskip("molmoact2_jax.eval.open_loop_plots", reason="matplotlib is not installed")
    source = opened(directory, "lerobot")
    setting = open_loop.Setting((0, 1), seeds=(0, 1), batch=4)
    found = open_loop.compare(knowing(source, np.ones((HORIZON, 2), np.float32)), source, make_tag(), "toy", setting)
    files = plots.save(found, tmp_path, executed=2)
    assert {path.name for path in files} == {"episode_0.png", "episode_1.png", "horizon.png"}
    assert all(path.stat().st_size > 5000 for path in files)
    axes = plots.episode(found, 0, 2).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), source.column("action", 0)[:, 0])
