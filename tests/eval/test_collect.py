import dataclasses
import json

import numpy as np
import pytest

from molmoact2_jax.data import catalog, depth_maps
from molmoact2_jax.envs import experts, registry
from molmoact2_jax.envs.base import Frame
from molmoact2_jax.eval import collect, demonstrations

ORDER = collect.Order("toy", ("go-red", "go-blue"), per_task=3, disturbance=experts.Disturbance(share=0.5))


@pytest.fixture(scope="module")
def spec():
    env = registry.open_environment("toy", "go-red")
    env.close()
    return env.spec


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    directory = tmp_path_factory.mktemp("toy")
    return directory, collect.collect(ORDER, directory, num_processes=0)


def sources(directory, spec):
    return {
        "lerobot": catalog.open_source(directory / "lerobot", demonstrations.tag_of(spec)),
        "rlds": catalog.open_source(directory / "rlds", demonstrations.row_of(spec)),
    }


@pytest.mark.parametrize("name", ["lerobot", "rlds"])
def test_a_dataset_holds_what_the_experts_showed(collected, spec, name):
    source = sources(collected[0], spec)[name]
    assert source.num_episodes == 6 and source.fps == spec.fps
    assert (source.state_names, source.action_names) == (spec.state_names, spec.action_names)
    for position in range(6):
        task, seed = ORDER.tasks[position % 2], 1000 + position // 2
        env = registry.open_environment("toy", task)
        shown = experts.demonstrate(env, seed, ORDER.disturbance)
        np.testing.assert_array_equal(source.column("state", position), shown.states)
        np.testing.assert_array_equal(source.column("action", position), shown.actions)
        assert source.task(position, 0) == env.spec.instruction
        pictures = source.frames(position, range(len(shown.states)), source.cameras)
        np.testing.assert_array_equal(pictures[source.cameras[0]], shown.images["top"])


def test_measured_depth_lies_beside_the_datasets_as_millimetres(collected, tmp_path):
    frames = [
        Frame({}, np.zeros(2, np.float32), "go", np.full((4, 6), depth, np.float32)) for depth in (0.5, 1.2345, 99)
    ]
    env = registry.open_environment("toy", "go-red")
    shown = dataclasses.replace(experts.demonstrate(env, 1000, ORDER.disturbance), depth=experts._millimetres(frames))
    demonstrations.save(tmp_path / "one.npz", shown)
    demonstrations.write_maps(tmp_path / "maps", [demonstrations.load(tmp_path / "one.npz")])
    maps = depth_maps.MapFiles(tmp_path / "maps")(0, range(3))
    assert [int(values[0, 0]) for values in maps] == [500, 1234, 65535]
    assert shown.success and not (collected[0] / "maps").exists()


def test_executed_actions_lie_beside_the_labels(collected, spec):
    source, env = sources(collected[0], spec)["lerobot"], registry.open_environment("toy", "go-red")
    differ = set()
    for position in range(6):
        label = source.column("action", position)
        executed = source.column(demonstrations.EXECUTED, position)
        style = experts.demonstrate(env, 1000 + position // 2, ORDER.disturbance).style if position % 2 == 0 else None
        if style == "clean":
            np.testing.assert_array_equal(label, executed)
        differ.add(bool(np.abs(label - executed).max() > 0.05))
    assert differ == {True, False}


def test_the_report_counts_what_is_there(collected):
    directory, report = collected
    assert report == json.loads((directory / "collect.json").read_text())
    assert report["episodes"] == 6 and set(report["tasks"]) == set(ORDER.tasks)
    assert report["frames"] == sum(task["frames"] for task in report["tasks"].values())
    assert report["spec"]["versions"]["numpy"] == np.__version__
    assert not (directory / "episodes").exists()


def test_processes_change_nothing(collected, spec, tmp_path):
    collect.collect(ORDER, tmp_path, num_processes=2)
    for name, source in sources(tmp_path, spec).items():
        other = sources(collected[0], spec)[name]
        for column in ("state", "action"):
            np.testing.assert_array_equal(source.columns([column])[column], other.columns([column])[column])


def test_an_interrupted_collection_repeats_no_finished_episode(tmp_path, monkeypatch):
    runs = []
    record = collect.Demonstrator.record

    def interrupted(self, task, seed):
        if len(runs) == 4:
            raise KeyboardInterrupt
        runs.append((task, seed))
        return record(self, task, seed)

    monkeypatch.setattr(collect.Demonstrator, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect.collect(ORDER, tmp_path, num_processes=0)
    first, runs[:] = list(runs), []
    report = collect.collect(ORDER, tmp_path, num_processes=0)
    assert report["episodes"] == 6
    assert sorted(first + runs) == sorted((task, seed) for task in ORDER.tasks for seed in (1000, 1001, 1002))


def test_failures_are_left_out_and_made_up_for(tmp_path, monkeypatch):
    demonstrate = experts.demonstrate

    def unlucky(env, seed, disturbance):
        return demonstrate(env, seed, disturbance, horizon=1 if seed == 1001 else None)

    monkeypatch.setattr(experts, "demonstrate", unlucky)
    report = collect.collect(ORDER, tmp_path, num_processes=0)
    assert {task["attempts"] for task in report["tasks"].values()} == {4} and report["episodes"] == 6


def test_an_expert_that_always_fails_is_reported(tmp_path, monkeypatch):
    demonstrate = experts.demonstrate
    monkeypatch.setattr(experts, "demonstrate", lambda env, seed, how: demonstrate(env, seed, how, horizon=1))
    with pytest.raises(ValueError, match="expected an expert that mostly succeeds"):
        collect.collect(ORDER, tmp_path, num_processes=0)


def test_a_directory_begun_with_another_order_is_refused(collected):
    with pytest.raises(ValueError, match="begun with another order"):
        collect.collect(collect.Order("toy", ("go-red",), per_task=3), collected[0], num_processes=0)


def test_misspelt_tasks_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="Did you mean go-red"):
        collect.collect(collect.Order("toy", ("go-blue", "go-reed"), per_task=1), tmp_path / "new")
    assert not (tmp_path / "new").exists()
