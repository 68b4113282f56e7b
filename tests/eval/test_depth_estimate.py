import jax
import numpy as np

from molmoact2_jax.checkpoint import depth_anything as files
from molmoact2_jax.checkpoint import flat
from molmoact2_jax.data import depth_companion, depth_maps, memory
from molmoact2_jax.eval import depth_estimate
from molmoact2_jax.models import depth_anything

TINY = depth_anything.DepthAnythingConfig(
    width=64, num_heads=1, channels=(4, 4, 4, 4), features=4, head_features=2, grid=3
)


def weights():
    rng = np.random.default_rng(0)
    drawn = {n: rng.normal(size=s).astype(np.float32) * 0.2 for n, s in depth_anything.shapes(TINY).items()}
    return drawn | {"depth_head.scratch.output_conv2.2.bias": np.ones(1, np.float32) * 5}


def test_the_network_sees_the_shorter_side_at_518_and_sides_that_patches_divide():
    for size, expected in {
        (480, 640): (518, 686),
        (256, 256): (518, 518),
        (64, 48): (686, 518),
        (100, 61): (854, 518),
    }.items():
        seen = depth_maps.network_input(np.full((*size, 3), 124, np.uint8))
        assert seen.shape == (*expected, 3) and seen.dtype == np.float32
        np.testing.assert_allclose(
            seen[0, 0], (124 / 255 - np.array(depth_maps.MEAN)) / depth_maps.DEVIATION, atol=1e-6
        )


def test_maps_of_a_dataset_are_estimated_from_its_own_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(depth_maps, "NETWORK_SIZE", 42)
    pictures = np.random.default_rng(1).integers(0, 256, (3, 30, 40, 3), np.uint8)
    other = memory.Episode(np.zeros((2, 1)), np.zeros((2, 1)), {"top": pictures[:2, ::-1]}, "wait")
    source = memory.MemorySource(
        "toy", [other, memory.Episode(np.zeros((3, 1)), np.zeros((3, 1)), {"top": pictures}, "go")]
    )
    flat.save(weights(), tmp_path / "net.safetensors")
    asked = depth_companion.Settings("top", "disparity", "codec")
    maps, settings = depth_estimate.open_maps(tmp_path / "net.safetensors", source, asked)
    assert (settings.kind, settings.estimator, settings.input_size) == ("disparity", "width 64", 42)
    assert maps.cfg == TINY
    first, second = maps(1, [2, 0])
    assert first.shape == second.shape == (30, 40) and np.ptp(first) > 0
    np.testing.assert_array_equal(second, depth_estimate.estimate(TINY, maps.params, pictures[0]))
    assert np.abs(first - second).max() > 0


def test_a_picture_that_cannot_be_read_has_no_map(monkeypatch):
    source = memory.MemorySource(
        "toy", [memory.Episode(np.zeros((2, 1)), np.zeros((2, 1)), {"top": np.zeros((2, 8, 8, 3), np.uint8)}, "go")]
    )

    def frames(episode, frames, cameras):
        raise source.error(episode, frames[0], "damaged")

    monkeypatch.setattr(source, "frames", frames)
    assert depth_estimate.NetworkMaps(source, "top", TINY, {})(0, [0, 1]) == [None, None]


def test_sizes_follow_from_the_tensors(tmp_path):
    small = depth_anything.DepthAnythingConfig(
        width=128,
        depth=24,
        num_heads=2,
        taps=(4, 11, 17, 23),
        channels=(4, 8, 12, 16),
        features=8,
        head_features=4,
        grid=5,
    )
    drawn = {name: np.zeros(shape, np.float32) for name, shape in depth_anything.shapes(small).items()}
    flat.save(
        {name: value for name, value in drawn.items() if name != depth_anything.UNUSED}, tmp_path / "net.safetensors"
    )
    cfg, params = files.load(tmp_path / "net.safetensors")
    assert cfg == small and jax.tree.reduce(lambda a, b: a + b.size, params, 0) > 1000
