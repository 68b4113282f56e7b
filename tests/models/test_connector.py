import dataclasses

import jax
import numpy as np

from molmoact2_jax.models import connector
from tests.train import small

MODEL = small.model()
CFG = MODEL.connector
TREE = small.weights(MODEL, scale=0.1)["connector"]
FEATURES = np.random.default_rng(0).normal(size=(2, 8, CFG.feature_width)).astype(np.float32)


def pool(pooling, features=FEATURES, cfg=CFG):
    return jax.jit(lambda f, p: connector.pool(cfg, TREE, f, p))(features, np.asarray(pooling, np.int32))


def test_a_window_reads_its_patches_in_any_order():
    forward, backward = pool([[[0, 1, 4, 5]]] * 2), pool([[[5, 4, 1, 0]]] * 2)
    np.testing.assert_allclose(forward, backward, atol=1e-5)
    assert np.abs(forward - pool([[[0, 1, 4, 6]]] * 2)).max() > 1e-4


def test_an_empty_slot_equals_its_absence():
    partial = pool([[[2, 3, -1, -1]]] * 2)
    np.testing.assert_allclose(partial, pool([[[2, 3]]] * 2), atol=1e-5)


def test_without_the_mask_empty_slots_count_as_zeros():
    unmasked = dataclasses.replace(CFG, pooling_mask=False)
    full = [[[0, 1, 4, 5]]] * 2
    np.testing.assert_allclose(pool(full), pool(full, cfg=unmasked), atol=1e-6)
    zeros = np.concatenate([FEATURES, np.zeros_like(FEATURES[:, :1])], axis=1)
    expected = pool([[[2, 3, 8, 8]]] * 2, features=zeros)
    np.testing.assert_allclose(pool([[[2, 3, -1, -1]]] * 2, cfg=unmasked), expected, atol=1e-5)


def test_rows_read_their_own_pictures_and_padding_windows_are_finite():
    pooled = pool([[[0, 1, 2, 3], [-1] * 4], [[4, 5, 6, 7], [0, -1, -1, -1]]])
    assert np.isfinite(pooled).all()
    alone = pool([[[4, 5, 6, 7]]], features=FEATURES[1:])
    np.testing.assert_allclose(pooled[1, :1], alone[0], atol=1e-5)
