import dataclasses
import json
import shutil

import numpy as np
import pytest

from molmoact2_jax.cli import main, train
from molmoact2_jax.data import meanings, oxe, quarantine
from molmoact2_jax.train import feed, recipe


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Datasets of a robot with two channels and one camera, in both formats."""
    directory = tmp_path_factory.mktemp("toys")
    words = ["collect", str(directory), "--env", "toy", "--tasks", "go-red,go-blue", "--per-task", "2"]
    assert main.main([*words, "--processes", "0"]) == 0
    return directory


@pytest.fixture(scope="module")
def sides(golden, tmp_path_factory):
    """Side files of the tiny checkpoint, whose tags are libero (7 channels), yam (14) and toy (2)."""
    directory = tmp_path_factory.mktemp("sides") / "tiny"
    shutil.copytree(golden / "tiny", directory)
    path = directory / "norm_stats.json"
    stats = json.loads(path.read_text())
    numbers = {key: [value] * 2 for key, value in dict(min=-1.0, max=1.0, q01=-1.0, q99=1.0).items()}
    stats["metadata_by_tag"]["toy"] = dict(action_horizon=10, action_stats=numbers, state_stats=numbers)
    path.write_text(json.dumps(stats))
    return directory


def train_on(directory, sides, tmp_path, **entry):
    """Starts a run on one dataset."""
    robot = dict(path=str(directory)) | entry
    table = dict(
        run_dir=str(tmp_path / "run"), steps=2, batch_size=8, model=dict(init_from=str(sides)),
        data=dict(robots=[robot], tokens=256, crops=2, chunks=1, robot=dict(action_format="continuous")),
        optimizer=dict(peak_rates=dict(vit=0.0, connector=0.0, llm=0.0, action_expert=1e-3), warmup_steps=1),
    )  # fmt: skip
    return train.train(table)


@pytest.mark.parametrize("kind", ["lerobot", "rlds"])
def test_a_dataset_of_another_robot_is_refused_before_the_weights_are_touched(toys, sides, tmp_path, kind):
    meaning = str(toys / f"{kind}.json")
    with pytest.raises(ValueError, match=r"2 state channels, expected 8 from the statistics of libero.*another robot"):
        train_on(toys / kind, sides, tmp_path, tag="libero", meaning=meaning)
    assert not (tmp_path / "run").exists()


def test_cameras_that_a_dataset_lacks_are_named_with_what_to_do(toys, sides, tmp_path):
    with pytest.raises(ValueError, match=r"no camera 'observation.images.image', expected .*top.*tag of this robot"):
        train_on(toys / "lerobot", sides, tmp_path, tag="libero")


def test_a_tag_that_the_checkpoint_lacks_is_refused_with_those_it_has(toys, sides, tmp_path):
    with pytest.raises(ValueError, match=r"norm_tag: 'lbero', expected one of \['libero', 'toy', 'yam'\]"):
        train_on(toys / "lerobot", sides, tmp_path, tag="lbero")


@pytest.mark.parametrize("kind", ["lerobot", "rlds"])
def test_the_file_that_a_collection_leaves_explains_its_columns(golden, toys, sides, kind):
    made = recipe.build(dict(
        run_dir="", steps=1, batch_size=1, model=dict(init_from=str(sides)), optimizer=dict(peak_rates={}),
        data=dict(robots=[dict(path=str(toys / kind), tag="toy", meaning=str(toys / f"{kind}.json"))],
                  tokens=256, crops=2, chunks=1),
    ))  # fmt: skip
    from molmoact2_jax.checkpoint import config_json

    [(_, source)], held = feed.open_robots(made.data, feed.Sides.load(sides, config_json.load(sides)))
    assert source.state_names == ("x", "y") and source.task(0, 0).startswith("Go to the") and not held


def test_a_meaning_that_nobody_knows_is_refused_with_a_near_one(toys, sides, tmp_path):
    with pytest.raises(ValueError, match=r"data.robots.meaning: 'brigde' .*Did you mean 'bridge'"):
        train_on(toys / "rlds", sides, tmp_path, tag="toy", meaning="brigde")
    with pytest.raises(ValueError, match=r"nowhere.json: no file, expected the fields of oxe.Row or oxe.Tag"):
        train_on(toys / "rlds", sides, tmp_path, tag="toy", meaning="nowhere.json")


def test_a_meaning_survives_its_file(tmp_path, toys):
    assert meanings.read(toys / "lerobot.json").name == "toy"
    row = dataclasses.replace(oxe.ROWS["bridge"])
    (tmp_path / "row.json").write_text(json.dumps(dataclasses.asdict(row)))
    assert meanings.read(tmp_path / "row.json") == row


def test_datasets_of_one_name_are_told_apart_by_their_directories():
    paths = ["/data/ann/pick", "/data/ben/pick", "/data/ann/place", "/data/ann/pick"]
    assert feed.distinct(["pick", "pick", "place", "pick"], paths) == ["ann/pick", "ben/pick", "place", "ann/pick"]
    paths = ["/a/x/1.0.0", "/b/x/1.0.0", "/b/y/1.0.0"]
    assert feed.distinct(["libero"] * 3, paths) == ["a/x/1.0.0", "b/x/1.0.0", "y/1.0.0"]
    assert feed.distinct(["pick"] * 2, ["/data/pick"] * 2) == ["pick"] * 2 and feed.distinct([], []) == []


def test_opened_datasets_have_names_of_their_own(toys, sides, tmp_path):
    from molmoact2_jax.checkpoint import config_json

    for user in ("ann", "ben"):
        shutil.copytree(toys / "lerobot", tmp_path / user / "pick", ignore=shutil.ignore_patterns(".molmoact2"))
    robots = [
        recipe.RobotSet(str(tmp_path / user / "pick"), "toy", str(toys / "lerobot.json")) for user in ("ann", "ben")
    ]
    loaded = feed.Sides.load(sides, config_json.load(sides))
    for held_out in (0, 3):
        opened, held = feed.open_robots(recipe.DataConfig(robots=tuple(robots), held_out=held_out), loaded)
        assert [source.name for _, source in opened] == ["ann/pick", "ben/pick"]
        assert [part.source.name for part in held] == ["ann/pick", "ben/pick"] * bool(held_out)
        assert opened[0][1]._files is opened[1][1]._files


@pytest.mark.parametrize("held_out", [0, 3])
def test_a_quarantine_file_may_call_a_dataset_by_either_of_its_names(toys, sides, tmp_path, held_out):
    from molmoact2_jax.checkpoint import config_json

    listed = tmp_path / "quarantine.jsonl"
    entries = [quarantine.Entry(name, 0, frame, "") for frame, name in enumerate(("pick", "ann/pick", "ben/pick"))]
    quarantine.append(listed, entries)
    robots = []
    for user, file in (("ann", str(listed)), ("ben", "")):
        path = tmp_path / user / "pick"
        shutil.copytree(toys / "lerobot", path, ignore=shutil.ignore_patterns(".molmoact2"))
        robots.append(recipe.RobotSet(str(path), "toy", str(toys / "lerobot.json"), quarantine=file))
    loaded = feed.Sides.load(sides, config_json.load(sides))
    opened, _ = feed.open_robots(recipe.DataConfig(robots=tuple(robots), held_out=held_out), loaded)
    assert np.flatnonzero(~opened[0][1].valid).tolist() == [0, 1] and opened[1][1].valid.all()


def test_augmentation_on_the_host_is_for_multimodal_pictures_too():
    assert feed.vlm_options(recipe.DataConfig(robot={"augment": "full"})).augment == "full"
    assert feed.vlm_options(recipe.DataConfig()).augment == "none"


def test_pictures_are_not_augmented_on_the_host_and_on_the_device():
    run = dict(run_dir="", steps=1, batch_size=1, model={}, optimizer=dict(peak_rates={}))
    host = dict(robot=dict(augment="photometric"))
    assert recipe.build({**run, "data": host, "augment": "none"}).data.robot == {"augment": "photometric"}
    with pytest.raises(ValueError, match="augmented twice, 'photometric' on the host and 'full' on the device"):
        recipe.build({**run, "data": host})


def test_a_pattern_stands_for_each_dataset_and_names_its_companion(tmp_path):
    for name, more in (("a", {}), ("b", {}), ("a_depth", {"depth_vae": {}}), ("b_depth", {"depth_vae": {}})):
        (tmp_path / name / "meta").mkdir(parents=True)
        (tmp_path / name / "meta" / "info.json").write_text(json.dumps(more))
    entry = recipe.RobotSet(f"{tmp_path}/*@0-3", "yam", depth={"": f"{tmp_path}/*_depth"})
    assert feed.expand(entry) == [
        recipe.RobotSet(f"{tmp_path}/{name}@0-3", "yam", depth={"": f"{tmp_path}/{name}_depth"}) for name in "ab"
    ]
    one = recipe.RobotSet(f"{tmp_path}/a", "yam")
    assert feed.expand(one) == [one]
    with pytest.raises(ValueError, match="matches nothing"):
        feed.expand(dataclasses.replace(one, path=f"{tmp_path}/none/*"))


def test_a_run_opens_the_datasets_that_a_pattern_matches(toys, sides):
    made = recipe.build(dict(
        run_dir="", steps=1, batch_size=1, model=dict(init_from=str(sides)), optimizer=dict(peak_rates={}),
        data=dict(robots=[dict(path=str(toys / "lero*t"), tag="toy", meaning=str(toys / "lerobot.json"))],
                  tokens=256, crops=2, chunks=1),
    ))  # fmt: skip
    from molmoact2_jax.checkpoint import config_json

    [(entry, source)], _ = feed.open_robots(made.data, feed.Sides.load(sides, config_json.load(sides)))
    assert entry.path == str(toys / "lerobot") and source.num_episodes == 4
