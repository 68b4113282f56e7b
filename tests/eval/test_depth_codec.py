import numpy as np
import pytest

from molmoact2_jax.data import depth_maps, depth_scenes, lerobot_meta
from molmoact2_jax.eval import depth_codec
from molmoact2_jax.models import depth_vq


def test_held_out_maps_come_from_every_tenth_episode_and_long_episodes_count_more():
    lengths = np.array([5] * 19 + [500])
    meta = lerobot_meta.Meta(None, 10.0, {}, np.arange(20) + 100, lengths, (), {}, {})
    drawn = []

    def maps(episode, frames):
        drawn.append((episode, *frames))
        return [np.linspace(0, 1, 16).reshape(4, 4)]

    draw = depth_codec.drawer(meta, maps, "disparity")
    rng = np.random.default_rng(0)
    shapes = {draw(rng, held_out).shape for held_out in (True, False) for _ in range(50)}
    assert shapes == {(320, 320, 1)}
    held, learned = drawn[:50], drawn[50:]
    assert {episode for episode, _ in held} == {100, 110}
    assert sum(episode == 119 for episode, _ in learned) > 30
    assert all(frame < lengths[episode - 100] for episode, frame in drawn)


@pytest.mark.slow
def test_a_codec_fitted_to_scenes_uses_its_codes_and_beats_averaging_cells():
    """Released sizes, four minutes on two free cores; `pytest -rP` shows usage and errors."""
    rng = np.random.default_rng(0)
    maps = [depth_maps.prepare(depth_scenes.render(depth_scenes.draw(rng))[1], "metric") for _ in range(464)]

    def draw(rng, held_out):
        return maps[rng.integers(400, 464) if held_out else rng.integers(400)]

    _, usage = depth_codec.fit(depth_vq.DepthVQConfig(), draw, 400, 0, lambda done, total: None)
    print(usage)
    assert usage.used >= 0.9, usage
    assert usage.error < usage.pooled_error, usage
