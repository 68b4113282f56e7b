"""Host augmentation: ranges as released, deterministic by its generator, the identity where its draw says so."""

import numpy as np
import pytest
from PIL import Image

from molmoact2_jax.data import augment

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
STILL = augment.Draw(np.zeros(2), 0.0, np.arange(4), np.array([1.0, 1.0, 1.0, 0.0]), False, 1.0)


def drawn(**changes):
    return STILL._replace(**changes)


def test_a_neutral_photometric_draw_changes_nothing_but_the_rounding_of_hue():
    found = augment.apply(PICTURE, STILL, "photometric").astype(int)
    through_hsv = np.asarray(Image.fromarray(PICTURE).convert("HSV").convert("RGB"))
    np.testing.assert_array_equal(found, through_hsv)


@pytest.mark.parametrize("mode", augment.MODES)
def test_the_same_generator_gives_the_same_picture_and_another_gives_another(mode):
    a, b, c = (augment.augment(PICTURE, np.random.default_rng(seed), mode) for seed in (1, 1, 2))
    assert a.shape == PICTURE.shape and a.dtype == np.uint8
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_draws_fill_the_released_ranges():
    rng = np.random.default_rng(3)
    draws = [augment.draw(rng) for _ in range(4000)]
    factors = np.array([d.factors for d in draws])
    np.testing.assert_allclose(factors.min(axis=0), [0.8, 0.8, 0.8, -0.05], atol=2e-3)
    np.testing.assert_allclose(factors.max(axis=0), [1.2, 1.2, 1.2, 0.05], atol=2e-3)
    np.testing.assert_allclose(np.ptp([d.angle for d in draws]), 10, atol=0.1)
    assert 0.17 < np.mean([d.blurred for d in draws]) < 0.23
    assert min(d.sigma for d in draws) > 0.1 and max(d.sigma for d in draws) < 1.0
    assert len({tuple(d.order) for d in draws}) == 24


def test_the_crop_shows_every_corner_at_most_five_percent_larger():
    ramp = np.broadcast_to(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], (40, 60, 3)).copy()
    left = np.asarray(augment.crop(Image.fromarray(ramp), np.array([0.0, 0.0])))
    right = np.asarray(augment.crop(Image.fromarray(ramp), np.array([0.0, 0.999])))
    assert left[0, 0, 0] == ramp[0, 0, 0] and right[0, -1, 0] == ramp[0, -1, 0]
    assert left[0, -1, 0] < ramp[0, -1, 0] and right[0, 0, 0] > ramp[0, 0, 0]


def test_a_rotation_turns_counter_clockwise_and_fills_with_black():
    white = np.full((41, 41, 3), 255, np.uint8)
    white[20, 21:] = 0  # a ray to the right
    turned = np.asarray(augment.rotate(Image.fromarray(white), 5.0))
    assert (turned[0, 0] == 0).all()
    assert turned[18:20, 36, 0].min() < 128 < turned[21:23, 36, 0].min()  # it rose


def test_a_blur_keeps_the_mean_and_smooths_the_picture():
    found = augment.blur(PICTURE, 1.0).astype(float)
    assert abs(found.mean() - PICTURE.mean()) < 2
    assert np.abs(np.diff(found, axis=1)).mean() < 0.6 * np.abs(np.diff(PICTURE.astype(float), axis=1)).mean()
    np.testing.assert_array_equal(augment.blur(np.full((5, 5, 3), 7, np.uint8), 0.5), 7)


def test_colour_operations_move_only_what_they_name():
    image = Image.fromarray(PICTURE)
    gray = np.asarray(augment.saturation(image, 0.0))
    assert (gray == gray[..., :1]).all()
    assert np.asarray(augment.contrast(image, 0.0)).std() == 0
    assert np.asarray(augment.brightness(image, 0.5)).mean() < 0.51 * PICTURE.mean()
    red = Image.fromarray(np.full((2, 2, 3), (255, 0, 0), np.uint8))
    assert np.asarray(augment.hue(red, 1 / 3))[0, 0].argmax() == 1
    assert np.asarray(augment.hue(red, -1 / 3))[0, 0].argmax() == 2


def test_an_unknown_mode_is_refused_in_words():
    with pytest.raises(ValueError, match="expected one of"):
        augment.augment(PICTURE, np.random.default_rng(0), "strong")
