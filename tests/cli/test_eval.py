import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.cli import main, numbers
from molmoact2_jax.data import catalog, meanings
from molmoact2_jax.envs import fleet, toy
from molmoact2_jax.train import feed, recipe


@pytest.fixture(scope="module")
def checkpoint(golden, tmp_path_factory):
    """The tiny checkpoint, taught the numbers (not the skill) of the toy robot."""
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shutil.copytree(golden / "tiny", directory)
    stats = json.loads((directory / "norm_stats.json").read_text())
    spec = toy.Toy("go-red").spec
    channels = {key: [value] * 2 for key, value in dict(min=-1.0, max=1.0, q01=-1.0, q99=1.0).items()}
    stats["metadata_by_tag"]["toy"] = dict(
        action_key="action",
        state_keys=["observation.state"],
        camera_keys=["observation.images.top"],
        action_horizon=10,
        n_action_steps=3,
        setup_type=spec.setup,
        control_mode=spec.control,
        action_stats=channels | {"names": list(spec.action_names)},
        state_stats=channels | {"names": list(spec.state_names)},
    )
    (directory / "norm_stats.json").write_text(json.dumps(stats))
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    words = ["collect", str(directory), "--env", "toy", "--tasks", "go-red,go-blue", "--per-task", "2"]
    assert main.main([*words, "--processes", "0"]) == 0
    return directory


ROLLOUT = ["--env", "toy", "--tasks", "go-red,go-blue", "--seeds", "0-1", "--norm-tag", "toy", "--horizon", "6"]
ROLLOUT += ["--processes", "0", "--envs", "2", "--dtype", "float32", "--num-steps", "2", "--json"]


def rollout(checkpoint, capsys, *more):
    status = main.main(["eval", "rollout", str(checkpoint), *ROLLOUT, *more])
    out, err = capsys.readouterr()
    return json.loads(out) if status == 0 else (status, err)


def test_rollout_counts_episodes_and_writes_what_it_prints(checkpoint, capsys, tmp_path):
    found = rollout(checkpoint, capsys, "--out", str(tmp_path), "--film", "1")
    assert found == json.loads((tmp_path / "rollout.json").read_text())
    assert found["success"]["episodes"] == 4 and found["protocol"]["executed"] == 3
    assert found["protocol"]["cameras"] == ["top"] and found["policy"]["num_steps"] == 2
    assert sorted(path.name for path in tmp_path.glob("go-*.webp")) == ["go-blue-1.webp", "go-red-1.webp"]
    strips = [episode["strip"] for episode in found["episodes"] if "strip" in episode]
    assert sorted(path.name for path in tmp_path.glob("strip-*.webp")) == sorted(strips) != []
    again = rollout(checkpoint, capsys)
    assert [e | {"strip": None} for e in again["episodes"]] == [e | {"strip": None} for e in found["episodes"]]


def test_controls_change_words_or_weights(checkpoint, capsys):
    own = rollout(checkpoint, capsys)
    told = rollout(checkpoint, capsys, "--instruct", "go-red=go-blue", "--instruct", "go-blue=hello")
    assert [e["instruction"] for e in told["episodes"]] == [toy.TASKS["go-blue"]] * 2 + ["hello"] * 2
    blank = rollout(checkpoint, capsys, "--random-weights", "0")
    other = rollout(checkpoint, capsys, "--random-weights", "1")
    assert [found["policy"]["random_weights"] for found in (own, blank, other)] == [None, 0, 1]
    assert len({found["policy"]["digest"] for found in (own, told, blank, other)}) == 3
    assert blank["motion"] != own["motion"]


def test_a_swapped_pair_gets_each_others_words_and_keeps_its_goals(checkpoint, capsys):
    told = rollout(checkpoint, capsys, "--swap", "go-red,go-blue")
    swapped = {"go-red": toy.TASKS["go-blue"], "go-blue": toy.TASKS["go-red"]}
    assert told["protocol"]["instructions"] == swapped
    assert all(episode["instruction"] == swapped[episode["task"]] for episode in told["episodes"])
    assert set(told["tasks"]) == set(swapped)


def test_a_killed_rollout_goes_on_with_the_rounds_that_are_missing(checkpoint, capsys, tmp_path):
    seeds = ["--seeds", "0-3", "--envs", "1"]
    whole = rollout(checkpoint, capsys, *seeds, "--out", str(tmp_path / "whole"))
    words = ["eval", "rollout", str(checkpoint), *ROLLOUT, *seeds, "--out", str(tmp_path / "killed")]
    killed = subprocess.Popen([sys.executable, "-m", "molmoact2_jax.cli.main", *words], stdout=subprocess.DEVNULL)
    rounds = tmp_path / "killed" / "rounds.jsonl"
    while killed.poll() is None and not (rounds.exists() and rounds.read_text().count("\n")):
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    first, *_ = lines = rounds.read_text().splitlines()
    rounds.write_text(f"{first}\n{lines[-1][:40]}")  # as if the kill had cut a later line off
    (tmp_path / "killed" / "rollout.json").unlink(missing_ok=True)
    again = rollout(checkpoint, capsys, *seeds, "--out", str(tmp_path / "killed"))
    assert rounds.read_text().splitlines()[0] == first and rounds.read_text().count("\n") == 4
    assert again["episodes"] == whole["episodes"] and again["success"] == whole["success"]
    assert again["plans"] == whole["plans"] == 16


def test_a_finished_rollout_shows_its_result_and_refuses_another_protocol(checkpoint, capsys, tmp_path, monkeypatch):
    done = rollout(checkpoint, capsys, "--out", str(tmp_path))
    monkeypatch.setattr(fleet.Fleet, "call", None)  # nothing may run
    assert rollout(checkpoint, capsys, "--out", str(tmp_path), "--processes", "1") == done
    status, message = rollout(checkpoint, capsys, "--out", str(tmp_path), "--seeds", "0-2")
    assert status == 2 and "protocol.seeds: [0, 1] -> [0, 1, 2]" in message and message.count("\n") == 1
    status, message = rollout(checkpoint, capsys, "--out", str(tmp_path), "--random-weights", "0")
    assert status == 2 and "policy.digest" in message and "policy.random_weights: None -> 0" in message
    (tmp_path / "protocol.json").unlink()
    status, message = rollout(checkpoint, capsys, "--out", str(tmp_path))
    assert status == 2 and "another protocol" in message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tasks", "go-redd"], "Did you mean go-red"),
        (["--norm-tag", "libero"], "7 action channels"),
        (["--norm-tag", "nobody"], "expected one of"),
        (["--executed", "11"], "at most 10"),
        (["--instruct", "go-green=go-red"], "TASK=OTHER"),
        (["--swap", "go-red"], "expected two of go-red, go-blue"),
        (["--swap", "go-red,go-bleu"], "expected two of go-red, go-blue"),
        (["--env", "tyo"], "expected one of"),
    ],
)
def test_rollout_refuses_in_one_line_what_does_not_fit(checkpoint, capsys, more, words):
    status, message = rollout(checkpoint, capsys, *more)
    assert status == 2 and words in message and message.count("\n") == 1


@pytest.mark.parametrize("kind", ["lerobot", "rlds"])
def test_open_loop_reads_both_formats_alike(checkpoint, data, capsys, kind):
    words = ["eval", "open-loop", str(checkpoint), str(data / kind), "--as", str(data / f"{kind}.json")]
    words += ["--norm-tag", "toy", "--last", "2", "--frames", "2", "--seeds", "0-1", "--num-steps", "2"]
    assert main.main([*words, "--dtype", "float32", "--batch", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] == 4 and found["episodes"] == 2 and set(found["channels"]) == {"x", "y"}
    assert len(found["steps"]["x"]) == 10 and found["normalised"] > 0
    assert found["dataset"]["positions"] == [2, 3]
    RESULTS.append(found["channels"])
    for other in RESULTS[:-1]:
        np.testing.assert_allclose(
            [c["error"] for c in other.values()], [c["error"] for c in found["channels"].values()], atol=1e-5
        )


def test_open_loop_takes_the_episodes_that_training_holds_out(checkpoint, data, capsys):
    words = ["eval", "open-loop", str(checkpoint), str(data / "lerobot"), "--as", str(data / "lerobot.json")]
    words += ["--norm-tag", "toy", "--frames", "1", "--seeds", "0", "--num-steps", "2", "--dtype", "float32"]
    assert main.main([*words, "--batch", "4", "--held-out", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    robots = [recipe.RobotSet(str(data / "lerobot"), "toy", str(data / "lerobot.json"))]
    sides = feed.Sides.load(checkpoint, config_json.load(checkpoint))
    _, [held] = feed.open_robots(recipe.DataConfig(robots=tuple(robots), held_out=3), sides)
    whole = catalog.open_source(data / "lerobot", meanings.read(data / "lerobot.json"))
    assert whole.episode_ids[found["dataset"]["positions"]].tolist() == held.source.episode_ids.tolist()
    assert main.main([*words, "--held-out", "9"]) == 2
    assert "every 9th of 4 episodes" in capsys.readouterr().err


RESULTS: list = []  # of the format that was read before


def test_open_loop_refuses_a_dataset_of_another_robot(checkpoint, data, capsys):
    words = ["eval", "open-loop", str(checkpoint), str(data / "lerobot"), "--norm-tag", "libero"]
    assert main.main([*words, "--dtype", "float32"]) == 2
    assert "another robot" in capsys.readouterr().err


def test_collect_shows_a_table_and_goes_on_where_it_was(data, capsys):
    words = ["collect", str(data), "--env", "toy", "--tasks", "go-red,go-blue", "--processes", "0", "--per-task"]
    assert main.main([*words, "2"]) == 0
    assert "4 episodes" in capsys.readouterr().out
    assert main.main([*words, "3"]) == 2
    assert "begun with another order" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "expected"), [("3", (3,)), ("5-7,1", (5, 6, 7, 1)), (" 2 , 4-4", (2, 4))])
def test_ranges_name_numbers_in_order(text, expected):
    assert numbers.ranges(text) == expected


@pytest.mark.parametrize("text", ["", "a", "5-3", "1,,2", "-4"])
def test_ranges_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="expected numbers and ranges"):
        numbers.ranges(text)
