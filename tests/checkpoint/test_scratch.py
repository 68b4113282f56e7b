import dataclasses

import jax
import numpy as np
import pytest

from molmoact2_jax import Policy
from molmoact2_jax.checkpoint import config_json, hf, scratch
from molmoact2_jax.data import norm_stats
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import params

UNIT = norm_stats.TagStats(q01=(-1.0, -1.0), q99=(1.0, 1.0), names=("x", "y"))
TAG = norm_stats.Tag(UNIT, UNIT, horizon=4, n_action_steps=4, cameras=("front",), setup="one arm", control="steps")
STATS = norm_stats.NormStats("q01_q99", {"mine": TAG})
TINY = dataclasses.replace(scratch.SIZES["small"], image_size=32)


@pytest.mark.parametrize("name", scratch.SIZES)
def test_the_written_model_is_read_back(name, tmp_path):
    cfg = scratch.write(tmp_path, scratch.SIZES[name], STATS, ["Open the drawer."])
    assert config_json.load(tmp_path) == cfg and cfg.max_horizon == 4
    assert cfg.vit.init_std == cfg.llm.init_std == cfg.connector.init_std == scratch.SIZES[name].init_std


def test_fresh_weights_have_the_spread_that_the_sizes_say(tmp_path):
    cfg = scratch.write(tmp_path, TINY, STATS, ["open the drawer"])
    tree, _ = params.unbox(jax.jit(lambda key: molmoact2.init(cfg, key))(jax.random.key(0)))
    assert np.std(tree["llm"]["blocks"]["up"]) == pytest.approx(TINY.init_std, rel=0.03)
    assert np.std(tree["vit"]["blocks"]["up"]) == pytest.approx(TINY.init_std, rel=0.03)


def test_fresh_weights_in_these_files_make_a_policy(tmp_path):
    cfg = scratch.write(tmp_path / "files", TINY, STATS, ["open the drawer"])
    tree, _ = params.unbox(jax.jit(lambda key: molmoact2.init(cfg, key))(jax.random.key(0)))
    hf.export(cfg, tree, tmp_path / "model", tmp_path / "files")
    policy = Policy.from_pretrained(tmp_path / "model", dtype="float32")
    out = policy.predict_action([np.zeros((48, 48, 3), np.uint8)], "open the drawer", [0.0, 0.5], "mine")
    assert out.actions.shape == (4, 2) and np.isfinite(out.actions).all()


def test_files_without_a_robot_or_words_are_refused(tmp_path):
    with pytest.raises(ValueError, match="statistics of 0 robots, 1 instructions"):
        scratch.write(tmp_path, TINY, norm_stats.NormStats("q01_q99"), ["go"])
    loose = dataclasses.replace(STATS, tags={"mine": dataclasses.replace(TAG, horizon=None)})
    with pytest.raises(ValueError, match="tags mine: no horizon"):
        scratch.write(tmp_path, TINY, loose, ["go"])
    assert not list(tmp_path.iterdir())
