import dataclasses

import jax
import numpy as np

from molmoact2_jax.data import images
from molmoact2_jax.models import vit
from tests.train import small

MODEL = small.model()
CFG = MODEL.vit
TREE = small.weights(MODEL, scale=0.3)["vit"]


def crops(count=2, seed=0, side=28):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def features(cfg, tree, pictures):
    return jax.jit(lambda t, c: vit.encode(cfg, t, vit.patchify(c, cfg)))(tree, pictures)


def test_patches_on_the_device_are_those_of_the_host_in_range():
    pictures = crops()
    expected = images.patchify(pictures, CFG.patch_size).astype(np.float32) / 255 * 2 - 1
    np.testing.assert_allclose(vit.patchify(pictures, CFG), expected, atol=1e-6)
    assert np.abs(expected).max() <= 1


def test_pictures_are_encoded_one_by_one():
    pictures = crops()
    together = features(CFG, TREE, pictures)
    for i in range(2):
        np.testing.assert_allclose(together[i : i + 1], features(CFG, TREE, pictures[i : i + 1]), atol=2e-5)


def test_taps_stand_side_by_side_in_their_order():
    both = features(CFG, TREE, crops())
    swapped = features(dataclasses.replace(CFG, taps=CFG.taps[::-1]), TREE, crops())
    width = CFG.width
    np.testing.assert_array_equal(both[..., :width], swapped[..., width:])
    np.testing.assert_array_equal(both[..., width:], swapped[..., :width])
    shallow = jax.tree.map(lambda w: w[:1], TREE["blocks"])
    first = features(dataclasses.replace(CFG, depth=1, taps=(0,)), {**TREE, "blocks": shallow}, crops())
    np.testing.assert_allclose(both[..., width:], first, atol=2e-5)  # the second tap is the first layer


def test_positions_of_another_grid_are_resized():
    table = np.ones((4, CFG.width), np.float32) * np.arange(CFG.width, dtype=np.float32)
    tree = {**TREE, "patches": {**TREE["patches"], "position": table}}
    none = {**TREE, "patches": {**TREE["patches"], "position": np.zeros_like(table)}}
    wide = crops(side=56)  # 4 x 4 patches from a table of 2 x 2
    shift = vit.params.apply(vit.Patches(CFG), tree["patches"], vit.patchify(wide, CFG)) - vit.params.apply(
        vit.Patches(CFG), none["patches"], vit.patchify(wide, CFG)
    )
    np.testing.assert_allclose(shift, np.broadcast_to(table[0], shift.shape), rtol=1e-5, atol=1e-4)
