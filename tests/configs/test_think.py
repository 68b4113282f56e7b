"""The recipe of Think on a dataset with its depth companion, as `molmoact2 data depth` leaves them."""

import importlib.util
import pathlib

import numpy as np
import pytest

from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.data import catalog, depth_columns, depth_companion, lerobot_meta, lerobot_write, oxe
from molmoact2_jax.train import feed, recipe

CAMERAS = oxe.TAGS["libero"].cameras
RECIPE = pathlib.Path(__file__).parents[2] / "configs/finetune_libero_think.py"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A dataset of two episodes, and a companion with random codes."""
    root, rng = tmp_path_factory.mktemp("think"), np.random.default_rng(0)
    state, action = (lerobot_write.vector(tuple(f"{name}{i}" for i in range(n))) for name, n in (("s", 8), ("a", 7)))
    views = {camera: lerobot_write.camera(32, 32, dtype="image") for camera in CAMERAS}
    features = {"observation.state": state, "action": action, **views}
    writer = lerobot_write.Writer(root / "libero", fps=10, features=features)
    for length in (12, 9):
        for _ in range(length):
            pictures = {camera: rng.integers(0, 256, (32, 32, 3), np.uint8) for camera in CAMERAS}
            values = {"observation.state": np.zeros(8, np.float32), "action": np.zeros(7, np.float32), **pictures}
            writer.add(values, "open the drawer")
        writer.end_episode()
    writer.finalize()
    depth_columns.annotate(
        depth_columns.Annotator(
            source=catalog.open_source(root / "libero", "libero"),
            meta=lerobot_meta.read(root / "libero"),
            maps=lambda episode, frames: [np.ones((4, 4))] * len(frames),
            encode=lambda maps: rng.integers(0, 128, (len(maps), 100)),
            settings=depth_companion.Settings(CAMERAS[0], "metric", codec="random"),
        ),
        root / "libero_depth",
    )
    return root


def opened(golden, recorded, ablation, camera):
    """The dataset of the recipe's robot, and the ids of its tokens."""
    spec = importlib.util.spec_from_file_location("think", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = module.get_config(ablation).to_dict()
    [entry] = table["data"]["robots"]
    assert set(entry["depth"]) == {"image"}
    entry |= dict(path=str(recorded / "libero"), depth={camera: str(recorded / "libero_depth")})
    data = recipe.build(table | {"data": table["data"] | {"robots": [entry]}}).data
    cfg = config_json.load(golden / "tiny_think")
    sides = feed.Sides.load(golden / "tiny_think", cfg)
    [made] = feed.robot_stream(cfg, data, sides, feed.open_robots(data, sides)[0]).datasets
    return made, cfg.tokens.depth


@pytest.mark.parametrize("camera", ["image", CAMERAS[0], ""])
def test_the_recipe_finds_the_codes_and_half_of_its_examples_hold_them(golden, recorded, camera):
    made, ids = opened(golden, recorded, "", camera)
    buffer = np.concatenate([
        depth_companion.read(recorded / "libero_depth", "data/chunk-000/file-000.parquet", episode).buffer
        for episode in (0, 1)
    ])  # fmt: skip
    held = 0
    for epoch in range(4):
        for index in range(21):
            tokens = made.example(index, epoch).tokens
            codes = tokens[(tokens >= ids.first) & (tokens < ids.first + ids.num_codes)] - ids.first
            if codes.size:
                np.testing.assert_array_equal(codes, buffer[index])
                held += 1
    assert 0.3 < held / 84 < 0.7


def test_without_mixing_every_example_holds_codes_and_a_chunk(golden, recorded):
    made, ids = opened(golden, recorded, "no_mixing_no_noise_no_gate", "image")
    for index in range(21):
        example = made.example(index, 0)
        assert (example.tokens == ids.end).sum() == 1 and example.chunk is not None


def test_a_companion_of_no_camera_is_refused(golden, recorded):
    with pytest.raises(ValueError, match="depth of 'img', expected one of"):
        opened(golden, recorded, "", "img")
