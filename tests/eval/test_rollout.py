import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from molmoact2_jax.data import norm_stats
from molmoact2_jax.envs import registry, toy
from molmoact2_jax.eval import films, rollout, scorecard

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


def run(protocol, plan, **options):
    """All rounds as one."""
    played = list(rollout.rounds(protocol, plan, **options))
    episodes = [episode for each in played for episode in each.episodes]
    place = {key: i for i, key in enumerate((t, s) for t in protocol.tasks for s in protocol.seeds)}
    return sorted(episodes, key=lambda episode: place[episode.task, episode.seed])


def facts(episodes):
    spec = toy.Toy("go-red").spec
    return [episode.facts(spec) for episode in episodes]


def test_a_policy_that_sees_and_reads_succeeds():
    episodes = run(PROTOCOL, seeing)
    assert [(e.task, e.seed) for e in episodes] == [(t, s) for t in PROTOCOL.tasks for s in PROTOCOL.seeds]
    assert all(episode.success for episode in episodes)
    assert all(sum(episode.plans) == len(episode.actions) for episode in episodes)
    assert max(max(episode.plans) for episode in episodes) == 2


def test_with_swapped_instructions_it_fails_at_the_task():
    words = {task: toy.TASKS[other] for task, other in zip(PROTOCOL.tasks, reversed(PROTOCOL.tasks))}
    episodes = run(dataclasses.replace(PROTOCOL, instructions=words), seeing)
    assert not any(episode.success for episode in episodes)
    assert episodes[0].instruction == toy.TASKS["go-blue"]
    assert all(len(episode.actions) == 30 for episode in episodes)


@pytest.mark.parametrize("num_processes", [0, 2])
def test_a_second_run_gives_the_same_episodes_whatever_the_processes(num_processes):
    first = run(PROTOCOL, drunk)
    again = run(dataclasses.replace(PROTOCOL, num_processes=num_processes), drunk)
    np.testing.assert_equal(facts(again), facts(first))


def test_noise_depends_on_episode_and_plan_alone():
    seen = {}

    def noting(observations, seeds):
        seen.update({seed: one.state.copy() for one, seed in zip(observations, seeds)})
        return drunk(observations, seeds)

    run(PROTOCOL, noting)
    before = dict(seen)
    run(dataclasses.replace(PROTOCOL, num_envs=5), noting)
    assert before.keys() == seen.keys() and {seed[1] for seed in seen} == set(PROTOCOL.seeds)


def test_every_batch_has_the_same_size():
    sizes = set()

    def measuring(observations, seeds):
        sizes.add(len(observations))
        return seeing(observations, seeds)

    run(PROTOCOL, measuring)
    assert sizes == {3}


def test_the_horizon_ends_an_episode_within_a_plan():
    episodes = run(dataclasses.replace(PROTOCOL, horizon=5, instructions={"go-red": "blue", "go-blue": "red"}), seeing)
    assert {len(episode.actions) for episode in episodes} == {5}
    assert episodes[0].plans == [2, 2, 1]


def test_films_have_a_picture_before_and_after_every_action(tmp_path):
    episodes = run(dataclasses.replace(PROTOCOL, filmed=(1,)), seeing)
    filmed = [episode for episode in episodes if episode.film]
    assert [episode.seed for episode in filmed] == [1, 1]
    assert all(len(episode.film) == len(episode.actions) + 1 for episode in filmed)
    files = films.save_films(episodes, tmp_path, fps=10)
    assert [path.name for path in files] == ["go-red-1.webp", "go-blue-1.webp"]
    assert Image.open(files[0]).n_frames > 1


def test_strips_show_what_the_policy_saw_of_the_first_success_and_failure(tmp_path):
    protocol = dataclasses.replace(PROTOCOL, instructions={"go-blue": toy.TASKS["go-red"]}, num_envs=1)
    records = []
    for done in rollout.rounds(protocol, seeing):
        records.append(scorecard.record(done))
        films.save_strips(done, records[-1], records[:-1], tmp_path)
        for episode in done.episodes:
            assert len(episode.seen) == len(episode.plans) + 1
    episodes = [episode for record in records for episode in record["episodes"]]
    kept = {episode["task"]: episode["strip"] for episode in episodes if "strip" in episode}
    assert kept == {"go-red": "strip-go-red-0.webp", "go-blue": "strip-go-blue-0.webp"}
    count = min(8, len(next(done for done in rollout.rounds(protocol, seeing)).episodes[0].seen))
    assert Image.open(tmp_path / kept["go-red"]).size == (4 * (count * (toy.SIDE + 1) - 1), 4 * toy.SIDE)
    assert len(list(tmp_path.iterdir())) == 2


def test_actions_are_recorded_as_carried_out():
    episodes = run(dataclasses.replace(PROTOCOL, seeds=(0,)), lambda o, s: [np.full((4, 2), 9.0) for _ in o])
    assert np.abs(np.array(episodes[0].actions)).max() == 1.0


def test_the_result_file_repeats_protocol_versions_and_counts():
    spec, records = toy.Toy("go-red").spec, [scorecard.record(done) for done in rollout.rounds(PROTOCOL, seeing)]
    found = json.loads(json.dumps(scorecard.result(PROTOCOL, {"checkpoint": "none"}, spec, records)))
    assert found["success"]["rate"] == 1.0 and found["success"]["low"] < 0.8
    assert found["protocol"]["executed"] == 2 and found["protocol"]["horizon"] == 30
    assert found["environment"]["versions"]["numpy"] == np.__version__
    assert len(found["episodes"]) == 8 and set(found["tasks"]) == set(PROTOCOL.tasks)
    assert found["plans"] == sum(-(-episode["decisions"] // 2) for episode in found["episodes"])


@pytest.mark.parametrize("num_envs", [1, 2, 3, 4, 20])
def test_rounds_hold_every_episode_once_and_few_tasks_at_a_time(num_envs):
    tasks, seeds = ("a", "b", "c"), tuple(range(7))
    rounds = rollout.orders(dataclasses.replace(PROTOCOL, tasks=tasks, seeds=seeds, num_envs=num_envs))
    assert sorted(itertools.chain(*rounds)) == sorted(itertools.product(tasks, seeds))
    assert all(len({task for task, _ in order}) <= num_envs for order in rounds)
    assert all(len(order) <= max(2 * num_envs, len(tasks)) for order in rounds)
    assert rounds[0][0] == ("a", 0) and (num_envs < 3 or rounds[0][1] == ("b", 0))


def test_a_simulator_keeps_its_task_while_there_are_enough_of_them(monkeypatch):
    opened = []
    start = registry.open_environment
    monkeypatch.setattr(registry, "open_environment", lambda env, task: opened.append(task) or start(env, task))
    run(dataclasses.replace(PROTOCOL, seeds=tuple(range(10)), num_envs=4), seeing)
    assert sorted(opened) == ["go-blue"] * 2 + ["go-red"] * 2
    opened.clear()
    run(dataclasses.replace(PROTOCOL, seeds=tuple(range(10)), num_envs=1), seeing)
    assert opened == ["go-red", "go-blue"]


def test_a_round_is_the_same_whether_or_not_those_before_it_ran():
    whole = [[episode.facts(done.specs[episode.task]) for episode in done.episodes]
             for done in rollout.rounds(PROTOCOL, drunk)]  # fmt: skip
    rest = [[episode.facts(done.specs[episode.task]) for episode in done.episodes]
            for done in rollout.rounds(PROTOCOL, drunk, first=1)]  # fmt: skip
    np.testing.assert_equal(rest, whole[1:])


def test_progress_goes_on_from_the_rounds_that_were_run_before():
    told = []
    run(PROTOCOL, seeing, progress=lambda done, total: told.append((done, total)), first=1)
    assert told[0][0] >= 6 and told[-1] == (8, 8)


@pytest.mark.parametrize("change", [dict(tasks=()), dict(seeds=()), dict(executed=0)])
def test_an_empty_protocol_is_refused(change):
    with pytest.raises(ValueError, match="at least one"):
        run(dataclasses.replace(PROTOCOL, **change), seeing)


def test_a_plan_of_another_robot_is_refused_in_words():
    with pytest.raises(ValueError, match=r"expected \(2,\) for x, y"):
        run(PROTOCOL, lambda observations, seeds: [np.zeros((4, 7))] * len(observations))


def test_an_error_in_a_simulators_process_reaches_the_caller():
    with pytest.raises(TypeError, match="colour"):
        run(dataclasses.replace(PROTOCOL, num_processes=1, options={"colour": "green"}), seeing)


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
