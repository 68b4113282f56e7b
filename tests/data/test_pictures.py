import cv2
import numpy as np
import pytest

from molmoact2_jax.data import pictures

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_png_gives_the_same_pixels_and_jpeg_nearly():
    np.testing.assert_array_equal(pictures.decode(pictures.encode_png(PICTURE)), PICTURE)
    smooth = cv2.GaussianBlur(np.repeat(np.repeat(PICTURE, 8, 0), 8, 1), (31, 31), 0)
    assert np.abs(pictures.decode(pictures.encode_jpeg(smooth)).astype(int) - smooth).mean() < 2


def test_grey_becomes_rgb_and_transparency_is_dropped():
    grey = pictures.decode(pictures.encode_png(PICTURE[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(PICTURE[..., :1], 3, axis=-1))
    bgra = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2BGRA)
    bgra[..., 3] = 7
    np.testing.assert_array_equal(pictures.decode(cv2.imencode(".png", bgra)[1].tobytes()), PICTURE)


@pytest.mark.parametrize("encode", [pictures.encode_png, pictures.encode_jpeg])
def test_a_picture_that_ends_early_is_refused_wherever_it_ends(encode):
    whole = encode(PICTURE)
    for keep in range(0, len(whole) - 4, 37):
        with pytest.raises(ValueError):
            pictures.decode(whole[:keep])


def test_other_arrays_are_not_encoded():
    for wrong in (PICTURE.astype(np.float32), PICTURE[None]):
        with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
            pictures.encode_png(wrong)
