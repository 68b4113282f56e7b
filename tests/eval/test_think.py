import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.eval import think
from molmoact2_jax.models import depth_vq
from molmoact2_jax.serve.records import Action, DepthCache

CFG = depth_vq.DepthVQConfig(width=2, code_dim=8, num_codes=16)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def codec():
    shapes = depth_vq.shapes(CFG)
    return CFG, {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def call(codes, changed=3):
    cache = DepthCache(RNG.integers(0, 256, (24, 32, 3), np.uint8), codes)
    chunk = np.zeros((2, 7), np.float32)
    return Action(chunk, chunk, None, codes, cache, passes=2, changed_cells=np.arange(100) < changed)


def test_a_row_has_what_its_call_saw_changed_and_decoded(codec):
    calls = [call(RNG.integers(0, 16, 100).astype(np.int32), changed) for changed in (100, 3)]
    wrist = RNG.integers(0, 256, (24, 32, 3), np.uint8)
    rows = think.frames(calls, [wrist], codec)
    assert [row.title for row in rows] == ["call 1: 100 cells, 2 passes", "call 2: 3 cells, 2 passes"]
    for row, one in zip(rows, calls, strict=True):
        np.testing.assert_array_equal(row.picture, one.depth_cache.image)
        np.testing.assert_array_equal(row.codes, one.depth_codes)
        np.testing.assert_array_equal(row.mask, one.changed_cells)
        expected = np.asarray(depth_vq.decode(*codec, row.codes[None]))[0]
        np.testing.assert_allclose(row.decoded, expected, atol=1e-4 * np.abs(expected).max())
        assert row.others[0] is wrist
    assert think.frames(calls)[0].decoded is None


def test_levels_are_given_only_with_a_codec(codec):
    assert think.levels(None) is None
    assert think.levels(codec).shape == (16,)


def test_a_codec_that_is_not_the_models_is_refused(codec):
    with pytest.raises(ValueError, match="grid 10 and 16 codes, expected 10 and more than 16"):
        think.frames([call(np.full(100, 16, np.int32))], codec=codec)
    other = dataclasses.replace(CFG, halvings=4)
    with pytest.raises(ValueError, match="codec: grid 20"):
        think.frames([call(np.zeros(100, np.int32))], codec=(other, {}))


def test_a_call_without_depth_has_no_row():
    plain = dataclasses.replace(call(np.zeros(100, np.int32)), depth_cache=None)
    with pytest.raises(ValueError, match="call 0 has no depth"):
        think.frames([plain])
