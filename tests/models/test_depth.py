import dataclasses

import numpy as np
import pytest

from molmoact2_jax.models import depth, molmoact2
from tests.models import prompts
from tests.train import small

KINDS = ("single", "per_layer")


def gated(kind):
    cfg = small.model(gate=kind, depth_reasoning=True)
    tree = small.weights(cfg, scale=0.3)
    tree["gate"]["bias"] = tree["gate"]["bias"] * 0 - np.float32(6)  # nearly closed: an open gate is normed away
    return cfg, tree


def visible_context(cfg, tree, row):
    prefix, _ = molmoact2.prefill(cfg, tree, prompts.pad(row))
    return molmoact2.context(cfg, tree, prefix)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gate_is_the_identity_without_depth_tokens(kind):
    cfg, tree = gated(kind)
    row = prompts.row(0, 10)
    ours = visible_context(cfg, tree, row)
    plain = visible_context(dataclasses.replace(cfg, gate=None), tree, row)
    np.testing.assert_array_equal(ours.kv.k, plain.kv.k)
    np.testing.assert_array_equal(ours.kv.v, plain.kv.v)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gate_shrinks_depth_tokens_only(kind):
    cfg, tree = gated(kind)
    ids = cfg.tokens.depth
    row = prompts.row(0, 12, tail=(ids.output, ids.start, ids.first + 3, ids.end))
    ours = visible_context(cfg, tree, row)
    plain = visible_context(dataclasses.replace(cfg, gate=None), tree, row)
    moved = np.abs(np.asarray(ours.kv.v) - plain.kv.v).max(axis=(0, 1, 3, 4))
    assert (moved[:8] == 0).all()
    assert (moved[8:] > 1e-3).all()


def test_the_single_gate_is_that_of_the_last_layer_for_all():
    rng = np.random.default_rng(0)
    cfg = small.model().expert
    values = rng.normal(size=(cfg.depth, 2, 6, cfg.context_width)).astype(np.float32)
    groups = np.ones((2, 1, 6), bool)
    span = np.arange(6)[None].repeat(2, axis=0) >= 4
    kernel = rng.normal(size=cfg.context_width).astype(np.float32)
    each = {"kernel": np.stack([kernel] * cfg.depth), "bias": np.full(cfg.depth, -1, np.float32)}
    one = {"kernel": kernel, "bias": np.float32(-1)}
    single, per_layer = (np.asarray(depth.scales(cfg, tree, values, groups, span)) for tree in (one, each))
    for layer in range(cfg.depth):
        np.testing.assert_allclose(single[layer], per_layer[-1], atol=1e-6)
    assert np.abs(per_layer[0] - per_layer[-1]).max() > 1e-2
    np.testing.assert_array_equal(single[:, :, :4], 1)


def test_the_gate_reads_tokens_of_its_group_that_are_not_depth_and_all_where_there_are_none():
    values = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    groups = np.asarray([[[True, True, True, False], [False, False, False, True]]])
    pooled = depth.pool(values, groups, np.asarray([[False, False, True, False]]))
    np.testing.assert_allclose(pooled[0, 0, :, 0], [0.5, 3.0])
    np.testing.assert_allclose(depth.pool(values, groups, groups.any(axis=1))[0, 0, :, 0], [1.0, 3.0])
    np.testing.assert_allclose(depth.pool(values, groups & False, groups.any(axis=1)), 0)
