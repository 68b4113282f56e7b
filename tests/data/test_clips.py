import numpy as np
import pytest

from molmoact2_jax import config
from molmoact2_jax.data import clips, images

SETTINGS = config.ProcessorConfig(image_size=70)


@pytest.mark.parametrize(
    ("count", "fps", "expected"),
    [
        (1, 30, [0]),
        (2, 1, [0, 1]),
        (3, 1, [0, 0, 1, 2]),
        (20, 10, [0, 5, 10, 15, 19]),
        (16, 10, [0, 5, 10, 15]),
        (105, 30, [0, 15, 30, 45, 60, 75, 90, 104]),
        (106, 30, [0, 15, 30, 45, 60, 75, 90, 105]),
        (300, 30, [0, 42, 85, 128, 170, 213, 256, 299]),
        (14, 5, [0, 2, 5, 8, 10, 12, 13]),
    ],
)
def test_frames_shown_are_the_released_choice(count, fps, expected):
    """Rows recorded from the released video processor."""
    assert clips.indices(count, fps, SETTINGS).tolist() == expected


@pytest.mark.parametrize("fps", [1, 2, 5, 24, 29.97, 60])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 30, 31, 100, 999])
def test_frames_rise_from_the_first_to_the_last_within_the_limits(count, fps):
    shown = clips.indices(count, fps, SETTINGS)
    assert shown[0] == 0 and shown[-1] == count - 1
    assert (np.diff(shown) >= (fps >= SETTINGS.video_fps)).all()
    assert len(shown) <= max(SETTINGS.video_frames, 2)


def test_times_keep_the_rate_until_the_frames_run_out():
    assert clips.times(1.2, SETTINGS).tolist() == [0, 0.5, 1, 1.2]
    assert clips.times(3.5, SETTINGS).tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    np.testing.assert_allclose(clips.times(70, SETTINGS), np.arange(8) * 10)


def test_each_time_shows_the_frame_on_screen():
    ends = np.array([0.1, 0.2, 0.3])
    assert clips.frames_at(np.array([0, 0.05, 0.1, 0.25, 0.3, 9]), ends).tolist() == [0, 0, 1, 2, 2, 2]


def test_each_frame_is_one_crop_with_windows_of_its_own():
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    clip = clips.crops_of(frames, SETTINGS)
    assert clip.grid == (2, 2, 0, 0) and clip.pooling.shape == (12, 9)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(clip.pixels[i], images.resize(frame, 70))
        own = clip.pooling[4 * i : 4 * i + 4]
        assert sorted(own[own >= 0].tolist()) == list(range(25 * i, 25 * i + 25))


def test_released_frames_have_81_tokens():
    clip = clips.crops_of(np.zeros((2, 20, 30, 3), np.uint8), config.ProcessorConfig())
    assert clip.grid == (9, 9, 0, 0) and clip.pooling.shape == (162, 9) and (clip.pooling >= 0).all()
