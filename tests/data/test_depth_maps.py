import cv2
import numpy as np
import pytest
from PIL import Image

from molmoact2_jax.data import depth_maps, depth_scenes


def test_a_map_spans_minus_one_to_one_in_the_truncated_steps_of_a_byte():
    ramp = np.linspace(0, 256, 320, endpoint=False).repeat(320).reshape(320, 320).astype(np.float32)
    prepared = depth_maps.prepare(ramp, "disparity")
    assert prepared.shape == (320, 320, 1) and prepared.dtype == np.float32
    assert prepared.min() == -1 and prepared.max() == 1
    levels = (255 * (ramp / ramp.max())).astype(int)
    assert (np.abs((prepared[..., 0] + 1) * 127.5 - levels) < 1e-3).mean() > 0.99  # the rest round at whole levels


@pytest.mark.parametrize("size", [(240, 320), (480, 640), (97, 611), (64, 48), (720, 1280)])
def test_resizing_takes_the_pixels_that_opencv_takes(size):
    levels = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    levels[0, :2] = 0, 255
    expected = cv2.resize(levels, (320, 320), interpolation=cv2.INTER_NEAREST)
    prepared = depth_maps.prepare(levels, "disparity")[..., 0]
    np.testing.assert_array_equal(np.round((prepared * 0.5 + 0.5) * 255), expected)


def test_metric_depth_is_inverted_and_its_unit_does_not_matter():
    metres = depth_scenes.render(depth_scenes.draw(np.random.default_rng(1)), 64)[1]
    prepared = depth_maps.prepare(metres, "metric")
    nearest = np.unravel_index(metres.argmin(), metres.shape)
    assert prepared[nearest[0] * 5, nearest[1] * 5, 0] > 0.99
    millimetres = (metres * 1000).astype(np.uint16)
    assert np.abs(depth_maps.prepare(millimetres, "metric") - prepared).max() < 0.03


def test_holes_of_a_sensor_count_as_far():
    metres = np.full((320, 320), 2.0)
    metres[0, :5] = 1.0, 0.0, np.nan, np.inf, -3.0
    np.testing.assert_array_equal(depth_maps.prepare(metres, "metric")[0, 1:5, 0], -1)


def test_a_flat_map_is_all_far():
    np.testing.assert_array_equal(depth_maps.prepare(np.ones((10, 10)), "disparity"), -1)


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        (np.ones((2, 3, 4)), "metric", r"\[2, 3, 4\], expected \[H, W\]"),
        (np.full((4, 4), np.nan), "disparity", "non-finite"),
        (np.zeros((4, 4)), "metric", "no finite value above 0"),
        (np.ones((4, 4)), "meters", "kind is 'meters'"),
    ],
)
def test_maps_that_mean_nothing_are_refused(values, kind, words):
    with pytest.raises(ValueError, match=words):
        depth_maps.prepare(values, kind)


def test_maps_are_read_from_stacks_and_from_files_of_one_frame(tmp_path):
    rng = np.random.default_rng(2)
    stack = rng.random((4, 6, 8)).astype(np.float32)
    np.save(tmp_path / "episode_000003.npy", stack)
    single = rng.integers(0, 65536, (6, 8)).astype(np.uint16)
    (tmp_path / "episode_000012").mkdir()
    Image.fromarray(single).save(tmp_path / "episode_000012/000000.png")
    np.save(tmp_path / "episode_000012/000001.npy", stack[0])
    maps = depth_maps.MapFiles(tmp_path)
    np.testing.assert_array_equal(maps(3, [2, 0]), stack[[2, 0]])
    first, second = maps(12, [0, 1])
    np.testing.assert_array_equal(first, single)
    np.testing.assert_array_equal(second, stack[0])


def test_missing_maps_and_wrong_files_are_named(tmp_path):
    maps = depth_maps.MapFiles(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"episode_000007, frame 2, expected .*episode_000007/000002\.png"):
        maps(7, [2])
    np.save(tmp_path / "episode_000001.npy", np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match=r"episode_000001\.npy: shape \[2, 4, 4\]"):
        maps(1, [2])
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="one channel"):
        depth_maps.read(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="expected one of"):
        depth_maps.read(tmp_path / "depth.exr")


def test_a_rendered_plane_has_the_depth_of_geometry():
    nothing = np.zeros((0, 4)), np.zeros((0, 6))
    scene = depth_scenes.Scene(
        np.array([0.0, 0.0, 1.0]), np.array([0.0, 1e-6, 0.0]), 1.0, 3.0, *nothing, np.zeros((2, 3), np.uint8)
    )
    np.testing.assert_allclose(depth_scenes.render(scene, 32)[1], 1.0, rtol=1e-5)  # straight down on the floor
    ball = scene.__class__(**{**vars(scene), "spheres": np.array([[0.0, 0.0, 0.0, 0.25]]),
                              "colours": np.zeros((3, 3), np.uint8)})  # fmt: skip
    depth = depth_scenes.render(ball, 33)[1]
    np.testing.assert_allclose(depth[16, 16], 0.75, atol=1e-4)
    np.testing.assert_allclose(depth[0, 0], 1.0, rtol=1e-5)
