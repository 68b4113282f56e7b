import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from molmoact2_jax.checkpoint import depth_vq as codec_files
from molmoact2_jax.checkpoint import flat
from molmoact2_jax.cli import main
from molmoact2_jax.data import depth_companion, depth_maps, depth_scenes, lerobot_write
from molmoact2_jax.eval import depth_codec
from molmoact2_jax.models import depth_anything, depth_vq

CFG = depth_vq.DepthVQConfig(width=2, code_dim=8)
LENGTHS = (4, 3)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A dataset of two episodes, and its depth in millimetres as PNG of 16 bits."""
    root = tmp_path_factory.mktemp("data")
    camera = lerobot_write.camera(64, 64, dtype="image")
    vector = lerobot_write.vector(("joint",))
    features = {"observation.state": vector, "action": vector, "top": camera, "side": camera}
    writer = lerobot_write.Writer(root / "arm", fps=10, features=features)
    for episode, length in enumerate(LENGTHS):
        folder = root / f"maps/episode_{episode:06}"
        folder.mkdir(parents=True)
        for frame, (picture, metres) in enumerate(depth_scenes.episode(np.random.default_rng(episode), length, 64)):
            values = {"observation.state": np.zeros(1), "action": np.zeros(1), "top": picture, "side": picture[::-1]}
            writer.add(values, "move")
            Image.fromarray((1000 * metres).astype(np.uint16)).save(folder / f"{frame:06}.png")
        writer.end_episode()
    writer.finalize()
    return root


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in depth_vq.shapes(CFG).items()}
    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    flat.save(params, path)
    return path


def run(recorded, codec, *more):
    words = [
        "data",
        "depth",
        recorded / "arm",
        "--maps",
        recorded / "maps",
        "--kind",
        "metric",
        "--codec",
        codec,
        *more,
    ]
    return main.main([str(word) for word in words])


def test_codes_of_the_maps_lie_beside_the_dataset(recorded, codec, tmp_path, capsys):
    assert run(recorded, codec, "--to", tmp_path / "out", "--sheet", tmp_path / "sheet.png", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["frames"], found["files"], found["camera"]) == (7, 1, "top")
    columns = depth_companion.read(tmp_path / "out", "data/chunk-000/file-000.parquet", 1)
    maps = depth_maps.MapFiles(recorded / "maps")(1, range(3))
    prepared = np.stack([depth_maps.prepare(values, "metric") for values in maps])
    cfg, params = codec_files.load(codec)
    np.testing.assert_array_equal(columns.codes, jax.jit(functools.partial(depth_vq.encode, cfg))(params, prepared))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 800


def test_a_second_run_keeps_what_is_there(recorded, codec, tmp_path, capsys):
    for expected in ("7 frames in 1 tables, 0 tables kept", "0 frames in 0 tables, 1 tables kept"):
        assert run(recorded, codec, "--to", tmp_path / "out", "--camera", "side") == 0
        assert expected in capsys.readouterr().out
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["depth_vae"]["image_key"] == "side"


def test_a_codec_is_fitted_once_and_its_usage_is_reported(recorded, tmp_path, capsys, monkeypatch):
    small = functools.partial(depth_vq.DepthVQConfig, width=2, residuals=1, code_dim=8)
    monkeypatch.setattr(depth_vq, "DepthVQConfig", small)
    monkeypatch.setattr(depth_codec, "MEASURED", 4)
    codec = tmp_path / "new.safetensors"
    assert run(recorded, codec, "--to", tmp_path / "a", "--fit", "3", "--json") == 0
    fit = json.loads(capsys.readouterr().out)["fit"]
    assert 0 < fit["used"] <= 1 <= fit["perplexity"] and fit["error"] > 0 < fit["pooled_error"]
    made = codec.read_bytes()
    assert run(recorded, codec, "--to", tmp_path / "b", "--fit", "3", "--json") == 0
    assert "fit" not in json.loads(capsys.readouterr().out)
    assert codec.read_bytes() == made


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--camera", "left"], "--camera: 'left', expected one of top, side"),
        (["--shard", "2/2"], "--shard: '2/2', expected I/N"),
        (["--codec", "absent.safetensors"], "absent.safetensors: no such file"),
    ],
)
def test_bad_input_is_said_in_one_line(recorded, codec, tmp_path, capsys, more, words):
    assert run(recorded, codec, "--to", tmp_path / "out", *more) == 2
    error = capsys.readouterr().err.strip()
    assert words in error.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_codec_with_more_codes_than_tokens_is_refused(recorded, tmp_path, capsys):
    params = depth_vq.init(depth_vq.DepthVQConfig(width=2, code_dim=8, num_codes=256), jax.random.key(0))
    flat.save(params, tmp_path / "wide.safetensors")
    assert run(recorded, tmp_path / "wide.safetensors", "--to", tmp_path / "out") == 2
    assert "256 codes, expected 10 and up to 128" in capsys.readouterr().err


def test_depth_is_estimated_where_no_maps_are_given(recorded, codec, tmp_path, capsys, monkeypatch):
    cfg = depth_anything.DepthAnythingConfig(
        width=64, num_heads=1, channels=(4, 4, 4, 4), features=4, head_features=2, grid=3
    )
    rng = np.random.default_rng(2)
    drawn = {n: rng.normal(size=s).astype(np.float32) * 0.2 for n, s in depth_anything.shapes(cfg).items()}
    flat.save(drawn | {"depth_head.scratch.output_conv2.2.bias": np.ones(1, np.float32)}, tmp_path / "net.safetensors")
    monkeypatch.setattr(depth_maps, "NETWORK_SIZE", 42)
    words = ["data", "depth", recorded / "arm", "--estimator", tmp_path / "net.safetensors", "--codec", codec]
    assert main.main([str(word) for word in [*words, "--to", tmp_path / "out"]]) == 0
    assert "7 frames in 1 tables" in capsys.readouterr().out
    described = json.loads((tmp_path / "out/meta/info.json").read_text())["depth_vae"]
    assert (described["depth_encoder"], described["kind"]) == ("width 64", "disparity")
    assert main.main([str(word) for word in [*words, "--to", tmp_path / "out", "--kind", "metric"]]) == 2
    assert "--kind: metric, expected" in capsys.readouterr().err
