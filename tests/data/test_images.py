import numpy as np
import pytest
from PIL import Image

from molmoact2_jax import config
from molmoact2_jax.data import images

TINY = config.ProcessorConfig(image_size=70, max_crops=4, overlap_margins=(1, 1))
TILED = config.ProcessorConfig(image_size=70, max_crops=4, overlap_margins=(1, 1), crop_mode="overlap-and-resize-c2")
RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.fixture(params=["tiny", "tiny_think", "tiny_think_random"])
def arrays(request, golden):
    return np.load(golden / request.param / "golden.npz")


def _encoder_input(pixels):
    """The released scaling of bytes to [-1, 1]."""
    return images.patchify(pixels, 14).astype(np.float32) / np.float32(255) * 2 - 1


def test_a_picture_of_the_right_size_stays_as_it_is_and_is_not_shared():
    picture = np.random.default_rng(1).integers(0, 256, (70, 70, 3), dtype=np.uint8)
    kept = images.resize(picture, 70)
    np.testing.assert_array_equal(kept, picture)
    assert not np.shares_memory(kept, picture)


def test_single_crops_of_the_cases_are_the_released_ones_to_the_bit(arrays):
    for case in range(3):
        expected = arrays[f"case{case}/in/pixel_values"]
        crops = [images.crops_of(arrays[f"case{case}/image{i}"], TINY) for i in range(len(expected))]
        pixels, pooling = images.join(crops, 25)
        np.testing.assert_array_equal(_encoder_input(pixels), expected)
        per_image = arrays[f"case{case}/in/image_token_pooling"].reshape(len(crops), -1, 4)
        for crop, indices in zip(crops, per_image):
            np.testing.assert_array_equal(crop.pooling, indices)
        offsets = 25 * np.arange(len(crops))[:, None, None]
        np.testing.assert_array_equal(pooling, np.where(per_image < 0, -1, per_image + offsets).reshape(-1, 4))
        assert [c.grid for c in crops] == [tuple(g) for g in arrays[f"case{case}/in/image_grids"].tolist()]


@pytest.mark.parametrize("name", ["big", "tall"])
def test_processor_of_both_shapes_is_the_released_one(arrays, name):
    image = arrays[f"preproc/{name}/image"]
    single = images.crops_of(image, TINY)
    np.testing.assert_array_equal(_encoder_input(single.pixels), arrays[f"preproc/{name}/pixel_values"])
    np.testing.assert_array_equal(single.pooling, arrays[f"preproc/{name}/pooling"])
    tiled = images.crops_of(image, TILED)
    np.testing.assert_array_equal(tiled.pooling, arrays[f"preproc/{name}/multi_pooling"])
    assert tiled.grid == tuple(arrays[f"preproc/{name}/multi_grids"][0])
    sums = _encoder_input(tiled.pixels).sum(-1)
    np.testing.assert_allclose(sums, arrays[f"preproc/{name}/multi_pixel_values_sum"], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("shape", "grid", "crops"),
    [
        ((480, 640), (14, 14, 23, 23), 5),
        ((720, 1280), (14, 14, 23, 42), 9),
        ((256, 256), (14, 14, 14, 14), 2),
        ((1500, 400), (14, 14, 52, 14), 6),
    ],
)
def test_released_sizes_are_tiled_as_documented(shape, grid, crops):
    settings = config.ProcessorConfig(crop_mode="overlap-and-resize-c2")
    result = images.crops_of(np.zeros((*shape, 3), np.uint8), settings)
    assert (result.grid, len(result.pixels)) == (grid, crops)
    assert len(result.pooling) == grid[0] * grid[1] + grid[2] * grid[3]


def test_tiles_show_each_place_of_the_enlarged_picture_once():
    result = images.crops_of(np.random.default_rng(1).integers(0, 256, (90, 140, 3), dtype=np.uint8), TILED)
    seen = result.pooling[result.pooling >= 0]
    assert len(seen) == len(np.unique(seen))
    assert set(range(25)) <= set(seen.tolist())


def test_pictures_smaller_than_the_overlap_get_one_tile():
    assert images.crops_of(np.zeros((20, 30, 3), np.uint8), TILED).grid == (3, 3, 3, 3)


def test_pooling_windows_of_the_released_size():
    indices = images.pooling_indices(27, 2)
    assert indices.shape == (196, 4) and indices.dtype == np.int32
    assert indices[[0, 13, 14, 195]].tolist() == [
        [0, 1, 27, 28],
        [26, -1, 53, -1],
        [54, 55, 81, 82],
        [728, -1, -1, -1],
    ]


@pytest.mark.parametrize(("grid", "window"), [(27, 3), (5, 2), (5, 3), (4, 4)])
def test_windows_cover_each_patch_once(grid, window):
    indices = images.pooling_indices(grid, window)
    assert sorted(indices[indices >= 0].tolist()) == list(range(grid**2))
    assert (indices >= 0).any(axis=1).all()


def _exact(image, size):
    """Bilinear interpolation in float64, the four neighbours weighed at once."""

    def axis(n, out):
        source = np.maximum((np.arange(out) + 0.5) * n / out - 0.5, 0)
        first = source.astype(int)
        return first, np.minimum(first + 1, n - 1), source - first

    (y0, y1, fy), (x0, x1, fx) = (axis(n, o) for n, o in zip(image.shape, size))
    fy, fx, pixels = fy[:, None, None], fx[None, :, None], image.astype(np.float64)
    top = pixels[y0][:, x0] * (1 - fx) + pixels[y0][:, x1] * fx
    bottom = pixels[y1][:, x0] * (1 - fx) + pixels[y1][:, x1] * fx
    return top * (1 - fy) + bottom * fy


@pytest.mark.parametrize(("shape", "size"), [((33, 47), 70), ((200, 90), 56), ((1, 1), 28), ((64, 64), (30, 100))])
def test_resizing_interpolates_to_the_nearest_level(shape, size):
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    rows, cols = (size, size) if isinstance(size, int) else size
    resized = images.resize(image, size)
    assert resized.shape == (rows, cols, 3)
    assert np.abs(resized - _exact(image, (rows, cols))).max() < 0.5 + 1e-4


def test_resizing_to_the_same_size_changes_nothing():
    image = np.random.default_rng(3).integers(0, 256, (70, 70, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.resize(image, 70), image)


def test_resizing_reads_pictures_that_are_not_contiguous():
    image = np.random.default_rng(4).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for view in (image[:, ::-1], image[::2], image[..., ::-1], image.transpose(1, 0, 2)):
        np.testing.assert_array_equal(images.resize(view, 28), images.resize(view.copy(), 28))


def test_patches_run_in_raster_order_with_channels_last():
    pixels = np.arange(28 * 28 * 3).reshape(1, 28, 28, 3)
    patches = images.patchify(pixels, 14)
    assert patches.shape == (1, 4, 588)
    np.testing.assert_array_equal(patches[0, 1].reshape(14, 14, 3), pixels[0, :14, 14:])


@pytest.mark.parametrize(
    "image",
    [
        RGB,
        Image.fromarray(RGB),
        RGB.astype(np.float32) / np.float32(255),
        RGB / 255.0,
        RGB.astype(np.float64),
        RGB.astype(np.int64),
        RGB.tolist(),
        RGB[None, None],
        np.ascontiguousarray(RGB.transpose(2, 0, 1)),
        np.concatenate([RGB, RGB[..., :1]], axis=-1),
        np.concatenate([RGB, RGB[..., :1]], axis=-1).transpose(2, 0, 1) / 255,
    ],
    ids=["uint8", "pil", "float32", "float64", "bytes", "int64", "list", "batch", "chw", "rgba", "rgba_chw"],
)
def test_every_accepted_form_of_a_picture_gives_the_same_bytes(image):
    result = images.coerce(image)
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, RGB)


@pytest.mark.parametrize("image", [RGB[..., 0], RGB[..., :1], RGB[None, ..., 0], Image.fromarray(RGB[..., 0])])
def test_grey_is_repeated(image):
    np.testing.assert_array_equal(images.coerce(image), np.repeat(RGB[..., :1], 3, axis=-1))


def test_every_byte_survives_scaling_to_one_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(images.coerce(levels.astype(dtype) / dtype(255)), levels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB[0, 0], "shape"),
        (np.zeros((2, 6, 5, 3), np.uint8), "shape"),
        (np.zeros((6, 5, 2), np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "at least one pixel"),
        (np.full((6, 5, 3), 255.5), "values"),
        (np.full((6, 5, 3), -0.1), "values"),
        (np.full((6, 5, 3), np.nan, np.float32), "values"),
        (np.full((6, 5, 3), np.inf), "values"),
        (np.full((6, 5, 3), 256), "values"),
        (np.zeros((6, 5, 3), bool), "dtype bool"),
        (np.zeros((6, 5, 3), object), "dtype object"),
        (Image.fromarray(np.zeros((6, 5), np.uint16)), "PIL mode I"),
        ("cup.jpg", "shape"),
    ],
)
def test_unusable_pictures_are_refused_by_name(image, message):
    with pytest.raises(ValueError, match=rf"images\[2\]: .*{message}"):
        images.coerce(image, "images[2]")


def test_unknown_crop_mode_is_refused():
    with pytest.raises(ValueError, match="crop_mode: 'zoom'"):
        images.crops_of(RGB, config.ProcessorConfig(crop_mode="zoom"))
