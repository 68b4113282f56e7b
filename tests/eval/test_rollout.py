import dataclasses
import json

import numpy as np
import pytest

from molmoact2_jax.data import norm_stats
from molmoact2_jax.envs import registry, toy
from molmoact2_jax.eval import rollout, scorecard

PROTOCOL = rollout.Protocol("toy", ("go-red", "go-blue"), (0, 1, 2, 3), "toy", executed=2, num_envs=3, num_processes=0)


def goal(picture, colour):
    """Finds the square of a colour in the picture; the toy's expert in pixels."""
    rows, columns = np.nonzero((picture == toy.COLOURS[colour]).all(axis=-1))
    return np.array([columns.mean(), rows.mean()]) / (toy.SIDE - 1)


def seeing(observations, seeds):
    """A policy that reads the instruction and the picture."""
    plans = []
    for one in observations:
        colour = "red" if "red" in one.task else "blue"
        step = np.clip((goal(one.images[0], colour) - one.state) / toy.SPEED, -1, 1)
        plans.append(np.repeat(step[None], 4, axis=0).astype(np.float32))
    return plans


def drunk(observations, seeds):
    return [np.random.default_rng(seed).uniform(-1, 1, (4, 2)) for seed in seeds]


def facts(run):
    return [episode.facts() for episode in run.episodes]


def test_a_policy_that_sees_and_reads_succeeds():
    run = rollout.run(PROTOCOL, seeing)
    assert [(e.task, e.seed) for e in run.episodes] == [(t, s) for t in PROTOCOL.tasks for s in PROTOCOL.seeds]
    assert all(episode.success for episode in run.episodes)
    assert all(sum(episode.plans) == len(episode.actions) for episode in run.episodes)
    assert max(max(episode.plans) for episode in run.episodes) == 2


def test_with_swapped_instructions_it_fails_at_the_task():
    words = {task: toy.TASKS[other] for task, other in zip(PROTOCOL.tasks, reversed(PROTOCOL.tasks))}
    run = rollout.run(dataclasses.replace(PROTOCOL, instructions=words), seeing)
    assert not any(episode.success for episode in run.episodes)
    assert run.episodes[0].instruction == toy.TASKS["go-blue"]
    assert all(len(episode.actions) == 30 for episode in run.episodes)


@pytest.mark.parametrize("num_processes", [0, 2])
def test_a_second_run_gives_the_same_episodes_whatever_the_processes(num_processes):
    first = rollout.run(PROTOCOL, drunk)
    again = rollout.run(dataclasses.replace(PROTOCOL, num_processes=num_processes), drunk)
    np.testing.assert_equal(facts(again), facts(first))


def test_noise_depends_on_episode_and_plan_alone():
    seen = {}

    def noting(observations, seeds):
        seen.update({seed: one.state.copy() for one, seed in zip(observations, seeds)})
        return drunk(observations, seeds)

    rollout.run(PROTOCOL, noting)
    before = dict(seen)
    rollout.run(dataclasses.replace(PROTOCOL, num_envs=5), noting)
    assert before.keys() == seen.keys() and {seed[1] for seed in seen} == set(PROTOCOL.seeds)


def test_every_batch_has_the_same_size():
    sizes = set()

    def measuring(observations, seeds):
        sizes.add(len(observations))
        return seeing(observations, seeds)

    rollout.run(PROTOCOL, measuring)
    assert sizes == {3}


def test_the_horizon_ends_an_episode_within_a_plan():
    run = rollout.run(
        dataclasses.replace(PROTOCOL, horizon=5, instructions={"go-red": "blue", "go-blue": "red"}), seeing
    )
    assert {len(episode.actions) for episode in run.episodes} == {5}
    assert run.episodes[0].plans == [2, 2, 1]


def test_films_have_a_picture_before_and_after_every_action(tmp_path):
    run = rollout.run(dataclasses.replace(PROTOCOL, filmed=(1,)), seeing)
    filmed = [episode for episode in run.episodes if episode.film]
    assert [episode.seed for episode in filmed] == [1, 1]
    assert all(len(episode.film) == len(episode.actions) + 1 for episode in filmed)
    files = scorecard.save_films(run, tmp_path, fps=10)
    assert [path.name for path in files] == ["go-red-1.webp", "go-blue-1.webp"]
    assert scorecard.Image.open(files[0]).n_frames > 1


def test_actions_are_recorded_as_carried_out():
    run = rollout.run(dataclasses.replace(PROTOCOL, seeds=(0,)), lambda o, s: [np.full((4, 2), 9.0) for _ in o])
    assert np.abs(np.array(run.episodes[0].actions)).max() == 1.0


def test_the_result_file_repeats_protocol_versions_and_counts():
    run = rollout.run(PROTOCOL, seeing)
    found = json.loads(json.dumps(scorecard.result(PROTOCOL, run, {"checkpoint": "none"})))
    assert found["success"]["rate"] == 1.0 and found["success"]["low"] < 0.8
    assert found["protocol"]["executed"] == 2 and found["protocol"]["horizon"] == 30
    assert found["environment"]["versions"]["numpy"] == np.__version__
    assert len(found["episodes"]) == 8 and set(found["tasks"]) == set(PROTOCOL.tasks)


@pytest.mark.parametrize("change", [dict(tasks=()), dict(seeds=()), dict(executed=0)])
def test_an_empty_protocol_is_refused(change):
    with pytest.raises(ValueError, match="at least one"):
        rollout.run(dataclasses.replace(PROTOCOL, **change), seeing)


def test_a_plan_of_another_robot_is_refused_in_words():
    with pytest.raises(ValueError, match=r"expected \(2,\) for x, y"):
        rollout.run(PROTOCOL, lambda observations, seeds: [np.zeros((4, 7))] * len(observations))


def test_an_error_in_a_simulators_process_reaches_the_caller():
    with pytest.raises(TypeError, match="colour"):
        rollout.run(dataclasses.replace(PROTOCOL, num_processes=1, options={"colour": "green"}), seeing)


def test_a_checkpoint_of_another_robot_is_refused_in_words():
    env = registry.open_environment("toy", "go-red")
    two, seven = (norm_stats.TagStats(q01=(0.0,) * n, q99=(1.0,) * n) for n in (2, 7))
    tag = norm_stats.Tag(action=two, state=two, horizon=4)
    assert scorecard.fit(tag, "toy", env.spec, 4) == ("top",)
    named = dataclasses.replace(tag, cameras=("observation.images.top",))
    assert scorecard.fit(named, "toy", env.spec, 4) == ("top",)
    cases = {
        r"7 action channels .* expected 2 \(x, y\)": dataclasses.replace(tag, action=seven),
        r"7 state channels": dataclasses.replace(tag, state=seven),
        r"2 action channels \(left, right\)": dataclasses.replace(
            tag, action=dataclasses.replace(two, names=("left", "right"))
        ),
        r"wrist cannot be shown": dataclasses.replace(tag, cameras=("observation.images.wrist",)),
    }
    for words, wrong in cases.items():
        with pytest.raises(ValueError, match=words):
            scorecard.fit(wrong, "toy", env.spec, 4)
    with pytest.raises(ValueError, match="at most 4"):
        scorecard.fit(tag, "toy", env.spec, 5)
