import numpy as np
import pytest

import molmoact2_jax
from molmoact2_jax import Policy

TASK = "open the top drawer"
STATE = np.linspace(-0.3, 0.3, 8, dtype=np.float32)


@pytest.fixture(scope="module")
def policy(golden):
    return Policy.from_pretrained(golden / "tiny_think_random", dtype="float32", unroll=False)


def pictures(*changed, seed=0):
    """A picture of 320 x 320 pixels, of which some cells have another colour."""
    image = np.random.default_rng(seed).integers(0, 256, (320, 320, 3)).astype(np.uint8)
    for cell in changed:
        y, x = 32 * (cell // 10), 32 * (cell % 10)
        image[y : y + 32, x : x + 32] = 255 - image[y : y + 32, x : x + 32]
    return [image]


def test_an_episode_hands_each_cache_to_the_next_call(policy):
    cache = None
    with policy.episode("libero", TASK, depth="adaptive") as episode:
        for images in (pictures(), pictures(3, 4), pictures(3, 4, 77)):
            out = episode.act(images, STATE)
            plain = policy.predict_action(images, TASK, STATE, "libero", depth="adaptive", depth_cache=cache)
            np.testing.assert_array_equal(out.depth_codes, plain.depth_codes)
            np.testing.assert_array_equal(out.actions, plain.actions)
            assert out.changed == plain.changed
            cache = plain.depth_cache
    assert out.changed == 1
    np.testing.assert_array_equal(np.flatnonzero(out.changed_cells), [77])
    assert isinstance(episode, molmoact2_jax.Episode)


def test_a_camera_that_reuses_its_array_is_compared_with_what_it_showed_before(policy):
    [image] = pictures()
    with policy.episode("libero", TASK, depth="adaptive") as episode:
        episode.act([image], STATE)
        image[:] = pictures(3, 4)[0]
        np.testing.assert_array_equal(np.flatnonzero(episode.act([image], STATE).changed_cells), [3, 4])


def test_pictures_may_change_their_size_within_an_episode(policy):
    colours = np.random.default_rng(0).integers(64, 256, (10, 10, 3)).astype(np.uint8)
    small, large = (colours.repeat(side, axis=0).repeat(side, axis=1) for side in (32, 80))
    large[240:320, 560:640] = 255 - large[240:320, 560:640]
    with policy.episode("libero", TASK, depth="adaptive") as episode:
        episode.act([small], STATE)
        compiled = policy.compilations
        np.testing.assert_array_equal(np.flatnonzero(episode.act([large], STATE).changed_cells), [37])
        np.testing.assert_array_equal(np.flatnonzero(episode.act([small], STATE).changed_cells), [37])
    assert policy.compilations == compiled


def test_a_new_episode_sees_nothing_of_the_last_and_an_ended_one_refuses_calls(policy):
    with policy.episode("libero", TASK, depth="adaptive") as first:
        assert first.act(pictures(), STATE).changed == 100
        assert first.act(pictures(), STATE).changed == 0
    with policy.episode("libero", TASK, depth="adaptive") as second:
        assert second.act(pictures(), STATE).changed == 100
    with pytest.raises(ValueError, match="has ended"):
        first.act(pictures(), STATE)
    with pytest.raises(ValueError, match="has ended"), first:
        pass


def test_an_episode_that_breaks_off_has_ended(policy):
    with pytest.raises(KeyError), policy.episode("libero", TASK, depth="adaptive") as episode:
        raise KeyError
    with pytest.raises(ValueError, match="has ended"):
        episode.act(pictures(), STATE)


def test_a_refused_call_leaves_the_cache_and_the_task_as_they_were(policy):
    with policy.episode("libero", TASK, depth="adaptive") as episode:
        episode.act(pictures(), STATE)
        with pytest.raises(ValueError, match="state"):
            episode.act(pictures(5), STATE[:3], "another task")
        assert episode.act(pictures(), STATE).changed == 0


def test_the_task_may_come_with_a_call_and_stays(policy):
    with policy.episode("libero", depth="adaptive") as episode:
        with pytest.raises(ValueError, match="task: None"):
            episode.act(pictures(), STATE)
        first = episode.act(pictures(), STATE, TASK)
        np.testing.assert_array_equal(episode.act(pictures(), STATE).depth_codes, first.depth_codes)


def test_what_the_checkpoint_cannot_serve_is_refused_when_the_episode_starts(policy):
    with pytest.raises(ValueError, match="norm_tag"):
        policy.episode("liber")
    with pytest.raises(ValueError, match="depth: 'on'"):
        policy.episode("libero", depth="on")
    with pytest.raises(ValueError, match="depth_cache"):
        policy.episode("libero", depth_cache=None)
    with policy.episode("libero", TASK) as episode, pytest.raises(ValueError, match="the episode keeps it"):
        episode.act(pictures(), STATE, depth_cache=None)


def test_a_hundred_frames_compile_nothing_after_the_first_whatever_changes(policy):
    rng = np.random.default_rng(1)
    with policy.episode("libero", TASK, depth="adaptive") as episode:
        episode.act(pictures(), STATE)
        compiled, seen = policy.compilations, set()
        for frame in range(99):
            cells = np.flatnonzero(rng.random(100) < rng.choice([0, 0.02, 0.3]))
            out = episode.act(pictures(*cells, seed=int(frame > 90)), STATE)
            assert 1 <= out.passes <= out.changed + 1
            seen.add(out.changed)
    assert policy.compilations == compiled
    assert len(seen) > 10
    assert min(seen) < 50 < max(seen)
