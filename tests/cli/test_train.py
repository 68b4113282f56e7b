"""What `molmoact2 train` says about bad input: an error in words, before anything is compiled."""

import logging

import ml_collections
import numpy as np
import pytest

import molmoact2_jax
from molmoact2_jax.checkpoint import orbax
from molmoact2_jax.cli import main
from molmoact2_jax.data import lerobot_write

SOURCE = "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({!r})\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """One episode of ten frames for the tag `libero`."""
    features = {
        "observation.state": lerobot_write.vector([f"s{i}" for i in range(8)]),
        "action": lerobot_write.vector([f"a{i}" for i in range(7)]),
        **{f"observation.images.{c}": lerobot_write.camera(32, 32, dtype="image") for c in ("image", "wrist_image")},
    }
    writer = lerobot_write.Writer(tmp_path_factory.mktemp("data") / "set", fps=10, features=features)
    for t in range(10):
        frame = {name: np.zeros(feature["shape"], np.float32) for name, feature in features.items()}
        frame |= {name: np.full((32, 32, 3), t, np.uint8) for name in features if "images" in name}
        writer.add(frame, task="wait")
    writer.end_episode()
    return writer.finalize()


@pytest.fixture(autouse=True)
def logging_as_before():
    """The command logs to the standard error of its process, here that of one test."""
    root, ours = logging.getLogger(), logging.getLogger(molmoact2_jax.__name__)
    handlers, level = root.handlers[:], ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)


@pytest.fixture
def refused(tmp_path, dataset, golden, capsys):
    """Runs `molmoact2 train` on a recipe with changes and flags, and returns the error that it ends with."""

    def run(*flags, **changes):
        table = dict(
            run_dir=str(tmp_path / "run"), steps=4, batch_size=8, dtype="float32", augment="none", frozen=(),
            model=dict(init_from=str(golden / "tiny")), optimizer=dict(warmup_steps=1), embedding="all",
            data=dict(robots=({"path": str(dataset), "tag": "libero"},), tokens=300),
            mesh=dict(data=1, fsdp=-1, tensor=1),
        ) | changes  # fmt: skip
        path = tmp_path / "recipe.py"
        path.write_text(SOURCE.format(table))
        assert ml_collections  # the file imports it
        assert main.main(["train", f"--config={path}", *flags]) == 2
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err and shown.out == ""
        last = shown.err.rindex("error: ")
        line, *details = shown.err[last:].splitlines()
        assert all(detail.startswith("  ") for detail in details)
        return " ".join([line, *details])

    return run


def test_a_misspelt_key_of_the_recipe_names_the_near_one(refused):
    assert "config.optimizer.warmup_step: unknown key" in (line := refused(optimizer=dict(warmup_step=1)))
    assert "Did you mean 'warmup_steps'?" in line


def test_a_misspelt_key_of_a_flag_is_refused(refused):
    assert "step" in refused("--config.step=3")
    assert "warmup" in refused("--config.optimizer.warmup=3")


def test_a_frozen_pattern_that_matches_nothing_is_refused_with_what_there_is(refused):
    assert "frozen: '^visual/' matches no parameter, expected at least one of connector/" in refused(
        frozen=("^visual/",)
    )


def test_a_mesh_that_does_not_divide_the_devices_is_refused(refused):
    assert "data=1 x fsdp=3 x tensor=1 needs 3 devices, but there are 8" in refused(mesh=dict(fsdp=3))


def test_a_batch_that_does_not_divide_the_mesh_is_refused_with_the_next_sizes(refused):
    assert "6 rows, expected a multiple of data x fsdp = 8" in (line := refused(batch_size=6))
    assert "Use 8 or 16 rows" in refused(batch_size=12), line


def test_initial_weights_of_another_model_are_refused(refused, golden):
    line = refused(model=dict(init_from=str(golden / "tiny"), overrides=dict(llm=dict(depth=5))))
    assert "error: init_from: " in line and "llm/blocks/v is (3, 64, 2, 16), expected (5, 64, 2, 16)" in line


def test_a_run_whose_checkpoint_is_of_another_model_is_refused(refused, tmp_path):
    with orbax.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        arrays = {"w": np.ones(3, np.float32)}
        checkpoints.save(1, orbax.Saved(arrays, arrays, {}, {}))
    assert "checkpoints/1" in (line := refused()) and "another" in line
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()


def test_rows_that_hold_no_example_are_refused_with_the_reason(refused, dataset):
    line = refused(data=dict(robots=({"path": str(dataset), "tag": "libero"},), tokens=16))
    assert "1000 examples in succession were left out ({'tokens over the limit': 1000}" in line


def test_a_path_that_is_no_dataset_is_refused(refused, tmp_path):
    line = refused(data=dict(robots=({"path": str(tmp_path / "nothing"), "tag": "libero"},), tokens=16))
    assert str(tmp_path / "nothing") in line
