"""Update masks and buffers against the released implementation.

`golden/depth_mask.npz` was recorded by running the released mask function on cells whose similarity is within 1e-7 of
the threshold: there exact arithmetic, another order of summation, or a float64 threshold each decide some cells
otherwise.
"""

import sys

import numpy as np
import pytest

from molmoact2_jax.data import depth


@pytest.mark.parametrize("variant", ["tiny_think", "tiny_think_random"])
def test_inference_masks_equal_the_released_ones(golden, variant):
    archive = np.load(golden / variant / "golden.npz")
    for case in ("case0", "case1", "case2"):
        pictures = [archive[f"{case}/image0"], *(archive[f"{case}/frame{f}/image0"] for f in (1, 2))]
        for frame in (1, 2):
            mask = depth.update_mask(pictures[frame - 1], pictures[frame])
            np.testing.assert_array_equal(mask, archive[f"{case}/frame{frame}/update_mask"])


def test_cells_at_the_threshold_round_as_released(golden):
    archive = np.load(golden / "depth_mask.npz")
    previous, current, mask = archive["previous"], archive["current"], archive["mask"]
    np.testing.assert_array_equal(depth.update_mask(previous, current), mask)
    a, b = (depth._cells(picture).astype(np.float64) for picture in (previous, current))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    exact = np.where(norms == 0, 1, (a * b).sum(axis=1) / np.maximum(norms, 1))
    assert ((exact < depth.THRESHOLD) != mask).sum() > 5, "the archive no longer tells rounding apart"


def test_a_repeated_picture_changes_nothing():
    picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    assert not depth.update_mask(picture, picture).any()
    assert not depth.annotation_mask(picture, picture).any()


def test_only_the_cells_that_changed_are_updated_and_order_of_frames_does_not_matter():
    rng = np.random.default_rng(1)
    before = rng.integers(0, 256, (320, 320, 3), np.uint8)
    after = before.copy()
    after[32:64, 96:128] = rng.integers(0, 256, (32, 32, 3), np.uint8)
    expected = np.arange(100) == 13
    for mask in (depth.update_mask, depth.annotation_mask):
        np.testing.assert_array_equal(mask(before, after), expected)
        np.testing.assert_array_equal(mask(after, before), expected)


def test_a_black_cell_counts_as_unchanged_whatever_comes_next():
    black = np.zeros((320, 320, 3), np.uint8)
    bright = np.random.default_rng(2).integers(1, 256, black.shape, np.uint8)
    assert not depth.update_mask(black, bright).any() and not depth.update_mask(bright, black).any()


def test_brightness_alone_changes_nothing_but_colour_does():
    grey = np.full((320, 320, 3), 100, np.uint8)
    assert not depth.update_mask(grey, grey * 2).any()
    assert depth.update_mask(grey, grey * np.array([2, 1, 1], np.uint8)).all()


def test_pictures_of_different_size_are_compared():
    assert not depth.update_mask(np.full((64, 48, 3), 90, np.uint8), np.full((480, 640, 3), 90, np.uint8)).any()


def test_only_inference_averages_over_what_resizing_drops():
    stripes = np.full((1280, 1280, 3), 20, np.uint8)
    stripes[::4] = 220  # one row in four: the mean of any four stays, the sampled rows between do not
    left = (np.arange(1280) // 64 % 2 == 0)[None, :, None]  # half of each cell, as a cosine ignores brightness
    shifted = np.where(left, np.roll(stripes, 1, axis=0), stripes)
    assert not depth.update_mask(stripes, shifted).any()
    assert depth.annotation_mask(stripes, shifted).all()


def test_inference_needs_no_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    picture = np.full((100, 100, 3), 9, np.uint8)
    assert not depth.update_mask(picture, picture).any()


def test_a_buffer_keeps_what_did_not_change():
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 128, (5, 100)).astype(np.int16)
    masks = rng.random((5, 100)) < 0.3
    masks[0] = True
    buffer = None
    for frame, mask in zip(codes, masks, strict=True):
        buffer = depth.update_buffer(buffer, frame, mask)
    last = np.array([np.flatnonzero(masks[:, cell])[-1] for cell in range(100)])
    np.testing.assert_array_equal(buffer, codes[last, np.arange(100)])
    assert buffer.dtype == np.int16


@pytest.mark.parametrize(
    "picture", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_pictures_of_the_wrong_kind_are_refused_by_name(picture):
    good = np.zeros((8, 8, 3), np.uint8)
    for mask in (depth.update_mask, depth.annotation_mask):
        with pytest.raises(ValueError, match=f"{mask.__name__}: current is {picture.dtype}.*expected uint8"):
            mask(good, picture)
