"""Depth Anything V2 against the network in PyTorch.

`golden/depth_anything.npz` was recorded with `DepthAnythingForDepthEstimation` of transformers 5.5 (PyTorch 2.13,
float32, CPU) at the sizes of `SMALL`, with the weights and pixels that this file draws. Its position embeddings were
scaled by the published rule (scale factors with an offset of 0.1), its output resized with aligned corners.
"""

import functools
import math

import jax
import numpy as np
import pytest

from molmoact2_jax.models import depth_anything

SMALL = depth_anything.DepthAnythingConfig(
    width=32, num_heads=4, channels=(8, 12, 16, 24), features=16, head_features=8, grid=5
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(12)
    drawn = {}
    for name, shape in depth_anything.shapes(SMALL).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith(("gamma", "norm.weight", "norm1.weight", "norm2.weight")):
            drawn[name] = 1 + np.float32(0.2) * values
        elif name.endswith("bias"):
            drawn[name] = np.float32(0.1) * values
        elif "pos_embed" in name or "token" in name:
            drawn[name] = np.float32(0.5) * values
        else:
            drawn[name] = values * np.float32((2 / math.prod(shape[1:])) ** 0.5)
    drawn["depth_head.scratch.output_conv2.2.bias"] += np.float32(2)
    return drawn


def test_depth_is_that_of_the_published_network(golden, params):
    archive = np.load(golden / "depth_anything.npz")
    rng = np.random.default_rng(13)
    cases = {"square": ((2, 70, 70, 3), (70, 70)), "wide": ((1, 56, 98, 3), (48, 90))}
    for name, (shape, size) in cases.items():
        pixels = rng.standard_normal(shape, dtype=np.float32)
        depth = jax.jit(functools.partial(depth_anything.estimate, SMALL, size=size))(params, pixels)
        assert archive[name].std() > 1
        tolerance = 1e-5 * np.abs(archive[name]).max()
        np.testing.assert_allclose(depth, archive[name], atol=tolerance, rtol=0)


def test_the_base_network_has_the_published_tensors():
    shapes = depth_anything.shapes(depth_anything.DepthAnythingConfig())
    assert sum(map(math.prod, shapes.values())) == 97_470_785
    assert shapes["pretrained.pos_embed"] == (1, 1370, 768)
    assert shapes["pretrained.blocks.11.attn.qkv.weight"] == (2304, 768)
    assert shapes["depth_head.resize_layers.0.weight"] == (96, 96, 4, 4)
    assert shapes["depth_head.scratch.refinenet4.resConfUnit2.conv2.weight"] == (128, 128, 3, 3)


def test_scaling_positions_to_their_own_grid_without_offset_changes_nothing(monkeypatch):
    monkeypatch.setattr(depth_anything, "POSITION_OFFSET", 0.0)
    depth_anything._cubic.cache_clear()
    np.testing.assert_allclose(depth_anything._cubic(37, 37), np.eye(37), atol=1e-7)
    np.testing.assert_allclose(depth_anything._cubic(37, 50).sum(axis=1), 1, atol=1e-6)
    depth_anything._cubic.cache_clear()


def test_aligned_resizing_keeps_corners_and_draws_straight_lines():
    weights = depth_anything._aligned(5, 17)
    np.testing.assert_allclose(weights @ np.arange(5), np.linspace(0, 4, 17), atol=1e-6)
