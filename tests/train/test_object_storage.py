"""Runs at an address of Google Cloud Storage, spoken to over HTTP as the real one by gcsfs, Orbax and TensorStore.

The store is one of ours on this machine. It shows that nothing relies on appending, renaming or folders; it cannot show
access rights, limits of rates, or what hierarchical buckets do.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from molmoact2_jax import Policy
from molmoact2_jax.checkpoint import hf, orbax, runs, storage
from molmoact2_jax.cli import main
from molmoact2_jax.cli import train as command
from molmoact2_jax.train import recipe, setup
from tests.train import drawer, object_store

SOURCE = "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({!r})\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return drawer.record(tmp_path_factory.mktemp("data") / "drawer")


@pytest.fixture(scope="module")
def bucket():
    """The empty bucket at gs://bucket."""
    with object_store.Bucket() as made, pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, made.url)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks for credentials
        yield made


@pytest.fixture
def one_device(monkeypatch):
    drawer.on_one_device(monkeypatch)


def leaves(place):
    return [np.asarray(x) for x in jax.tree.leaves(runs.load(place)[1])]


def steps(place):
    path = storage.path(place) / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def files(place):
    return {path.name for path in storage.path(place).iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bucket, dataset, golden):
    """The same run in a directory, and at an address where it was stopped once, of steps that only count."""
    whole, parts = tmp_path_factory.mktemp("runs") / "whole", "gs://bucket/runs/parts"
    with pytest.MonkeyPatch.context() as patch:
        drawer.on_one_device(patch)
        seen = drawer.count_steps(patch)
        assert command.train(drawer.table(whole, dataset, golden)) == "finished"
        with pytest.MonkeyPatch.context() as stopping:
            drawer.stop_after(stopping, 5)
            assert command.train(drawer.table(parts, dataset, golden)).startswith("stopped")
        assert command.train(drawer.table(parts, dataset, golden)) == "finished"
    assert seen[:8] == seen[8:], "the resumed run has seen other rows"
    return whole, parts


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_leaves_the_same_files_with_every_step_once(finished):
    whole, parts = finished
    assert files(parts) == files(whole)
    assert steps(parts) == steps(whole) == [1, 4, 8]
    for path in (whole / runs.SIDE).glob("*.json"):
        assert (storage.path(parts) / runs.SIDE / path.name).read_bytes() == path.read_bytes()
    assert runs.read_model(parts) == runs.read_model(whole)
    assert len(files(f"{parts}/tensorboard")) == 2  # one of each start
    assert files(f"{parts}/pictures") == files(whole / "pictures") != set()


def test_commands_read_a_run_at_an_address(finished, tmp_path, capsys):
    whole, parts = finished
    assert main.main(["export", parts, "--to", str(tmp_path / "out")]) == 0
    assert_equal(jax.tree.leaves(hf.load(tmp_path / "out")[1]), leaves(whole))
    for path in (whole / runs.SIDE).glob("*.json"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert main.main(["eval", "report", "--run", parts, "--to", str(tmp_path / "report.html"), "--json"]) == 0
    assert "training" not in json.loads(capsys.readouterr().out.splitlines()[-1])["missing"]


def test_a_policy_of_an_address_is_the_one_of_the_directory(finished):
    here, there = (Policy.from_pretrained(place, dtype="float32") for place in finished)
    assert_equal(jax.tree.leaves(here.params), jax.tree.leaves(there.params))
    np.testing.assert_array_equal(here.host.tag("libero").action.q01, there.host.tag("libero").action.q01)


def test_another_run_starts_from_one_at_an_address(finished, dataset, golden, one_device):
    states = []
    for place in finished:
        made = drawer.table("unused", dataset, golden, model=dict(init_from=str(place)))
        states.append(setup.initial_state(setup.prepare(recipe.build(made))))
    assert_equal(*map(jax.tree.leaves, states))


def test_a_run_of_another_configuration_is_refused_at_an_address_too(finished, dataset, golden, one_device):
    with pytest.raises(ValueError, match=r"gs://bucket/runs/parts: holds a run of another configuration"):
        command.train(drawer.table(finished[1], dataset, golden, steps=9))


@pytest.mark.slow
def test_a_killed_run_has_every_line_up_to_its_checkpoint_and_ends_bit_equal(
    tmp_path, bucket, dataset, golden, one_device
):
    whole, place = tmp_path / "whole", "gs://bucket/runs/killed"
    made = drawer.table(place, dataset, golden)
    assert command.train(made | dict(run_dir=str(whole))) == "finished"
    (tmp_path / "config.py").write_text(SOURCE.format(made))
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    words = [str(pathlib.Path(sys.executable).parent / "molmoact2"), "train", f"--config={tmp_path / 'config.py'}"]
    process = subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL)
    marker, deadline = "runs/killed/checkpoints/3/commit_success.txt", time.monotonic() + 200
    while marker not in bucket.contents and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "it ended before it was killed"
    assert steps(place)[:1] == [1]
    assert command.train(made) == "finished"
    assert steps(place) == [1, 4, 8]
    for a, b in zip(leaves(whole), leaves(place), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)  # the killed process compiled with other flags


PROCESS = """
import sys
from molmoact2_jax.cli import main
sys.exit(main.main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_two_processes_share_a_run_at_an_address(tmp_path, bucket, dataset, golden, run_processes):
    place = "gs://bucket/runs/shared"
    made = drawer.table(place, dataset, golden, mesh=dict(data=1, fsdp=2, tensor=1))
    (tmp_path / "config.py").write_text(SOURCE.format(made))
    words = PROCESS, f"--config={tmp_path / 'config.py'}"
    printed = run_processes(*words, num_processes=2, num_devices=1, timeout=500)
    assert [text.split()[-1] for text in printed] == ["finished"] * 2
    assert steps(place) == [1, 4, 8] and orbax.Checkpoints(f"{place}/checkpoints").steps == [6, 8]


def saved(number):
    arrays = {"w": np.full(4, number, np.float32)}
    return orbax.Saved(arrays, arrays, {}, {})


def test_a_checkpoint_that_a_kill_cut_off_is_absent_and_its_step_can_be_saved_again(bucket):
    place, target = "gs://bucket/cut", {"w": jax.ShapeDtypeStruct((4,), np.float32)}
    with orbax.Checkpoints(place) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, saved(number))
    (storage.path(place) / "2" / "commit_success.txt").unlink()  # written last
    with orbax.Checkpoints(place) as checkpoints:
        assert checkpoints.steps == [1] and checkpoints.restore(target, target)[0] == 1
        checkpoints.save(2, saved(5))
        checkpoints.wait()
        number, read = checkpoints.restore(target, target)
    assert number == 2 and read.params["w"][0] == 5


def test_a_damaged_checkpoint_is_set_aside(bucket):
    place, target = "gs://bucket/damaged", {"w": jax.ShapeDtypeStruct((4,), np.float32)}
    with orbax.Checkpoints(place) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, saved(number))
    (storage.path(place) / "2" / "params" / "manifest.ocdbt").write_bytes(b"nothing")
    with orbax.Checkpoints(place) as checkpoints:
        assert checkpoints.restore(target, target)[0] == 1
        assert checkpoints.steps == [1]
    assert files(place) == {"1", "2.damaged"}


def test_what_is_no_run_is_refused_in_words(bucket, tmp_path, capsys):
    assert main.main(["export", "gs://bucket/nothing", "--to", str(tmp_path / "out")]) == 2
    assert "gs://bucket/nothing holds no run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="gs://bucket/nothing holds no run"):
        Policy.from_pretrained("gs://bucket/nothing")


def test_storage_that_orbax_cannot_write_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="s3://bucket/run, expected a directory or gs://"):
        command.train(drawer.table("s3://bucket/run", pathlib.Path("no/data"), pathlib.Path("no/model")))
