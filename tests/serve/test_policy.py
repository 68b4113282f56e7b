import dataclasses
import string
from typing import NamedTuple

import jax
import numpy as np
import pytest

from molmoact2_jax import Observation, Policy
from molmoact2_jax.serve import observe, program

NUM_CALLS = 200
COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts what XLA compiles, as the runtime itself reports it."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event, duration, **_):
        self.count += event == COMPILED


@pytest.fixture(scope="module")
def compilations():
    return Compilations()


def observation(seed, tag="libero", pictures=2):
    """A random picture, instruction of 1 to 12 words and state."""
    rng = np.random.default_rng(seed)
    letters = list(string.ascii_lowercase)
    words = ["".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(rng.integers(1, 13))]
    images = [rng.integers(0, 256, (50, 70, 3)).astype(np.uint8) for _ in range(pictures)]
    return Observation(images, " ".join(words), rng.normal(size=8 if tag == "libero" else 14).astype(np.float32), tag)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


class Stream(NamedTuple):
    """What 200 random calls gave, and the programs and compilations before and after them."""

    calls: list
    noise: np.ndarray
    trajectories: list
    lengths: list
    before: tuple
    after: tuple


@pytest.fixture(scope="module")
def stream(policy, compilations):
    warmed = policy.warm("libero", max_task_tokens=128)
    assert warmed == policy.compilations > 1
    policy.predict_actions([observation(0)], noise=[None])
    before = policy.compilations, compilations.count
    calls = [observation(seed) for seed in range(NUM_CALLS)]
    noise = np.random.default_rng(7).normal(size=(NUM_CALLS, 10, 32)).astype(np.float32)
    outs = [policy.predict_actions([one], noise=[n])[0] for one, n in zip(calls, noise, strict=True)]
    after = policy.compilations, compilations.count
    lengths = [len(row(policy, one).tokens) for one in calls]
    return Stream(calls, noise, [out.trajectory for out in outs], lengths, before, after)


def test_two_hundred_calls_of_many_lengths_compile_nothing_after_warming(stream):
    assert stream.after == stream.before
    assert len({observe.bucket(n) for n in stream.lengths}) > 3


def test_padding_changes_nothing(policy, stream):
    for i in unpadded_sample(stream.lengths):
        close(stream.trajectories[i], unpadded(policy, stream.calls[i], stream.noise[i]))


@pytest.mark.slow
def test_padding_changes_none_of_two_hundred_calls(policy, stream):
    for one, noise, trajectory in zip(stream.calls, stream.noise, stream.trajectories, strict=True):
        close(trajectory, unpadded(policy, one, noise))


def row(policy, one):
    tag = policy.host.tag(one.norm_tag)
    return policy.host.row(one, "robot_action", observe.pictures(one, tag, strict_cameras=False))


def unpadded_sample(lengths):
    """Three calls of each of four lengths: every length needs a program of its own without padding."""
    common = sorted(set(lengths), key=lengths.count)[-4:]
    return [i for length in common for i in [i for i, n in enumerate(lengths) if n == length][:3]]


def unpadded(policy, one, noise):
    """Runs the program on exactly as many slots as the prompt has tokens."""
    prepared = row(policy, one)
    inputs = observe.pad([prepared], policy.cfg.tokens.pad, len(prepared.tokens))
    robot = policy._robots([policy.host.tag(one.norm_tag)])
    call = program.Call(inputs, robot, noise[None])
    return policy._runner.call(program.Spec("continuous", "off", horizon=10), call, 10).trajectory[0]


def test_compilations_are_what_the_runtime_compiles(golden, compilations):
    fresh = Policy.from_pretrained(golden / "tiny", dtype="float32", unroll=False)
    one = observation(3)
    fresh.predict_actions([one])
    counted, reported = fresh.compilations, compilations.count
    fresh.predict_actions([one], num_steps=2)
    assert fresh.compilations - counted == compilations.count - reported == 2  # the modulation, and the program
    fresh.predict_actions([one], num_steps=2)
    assert fresh.compilations - counted == compilations.count - reported == 2


def test_a_batch_of_mixed_lengths_and_robots_equals_one_by_one(policy):
    several = [observation(1), observation(2), observation(3, "yam", 3), observation(4)]
    noise = [np.random.default_rng(s).normal(size=(30 if s == 2 else 10, 32)).astype(np.float32) for s in range(4)]
    together = policy.predict_actions(several, noise=noise)
    assert [out.actions.shape for out in together] == [(10, 7), (10, 7), (25, 14), (10, 7)]
    for one, n, out in zip(several, noise, together, strict=True):
        alone = policy.predict_actions([one], noise=[n])[0]
        close(out.trajectory, alone.trajectory)
        close(out.actions, alone.actions)


def test_the_seed_gives_the_noise(policy):
    one = observation(5)
    first, again, other = (policy.predict_actions([one], seed=s)[0].actions for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    noise = np.random.default_rng(1).standard_normal((10, 32), np.float32)
    np.testing.assert_array_equal(policy.predict_actions([one], noise=[noise])[0].actions, first)


def test_a_chunk_is_cut_to_what_was_asked_for_and_timed_by_phase(policy):
    out = policy.predict_actions([observation(6)], n_action_steps=4)[0]
    assert out.actions.shape == (4, 7)
    assert out.actions.dtype == np.float32
    assert out.trajectory.shape == (10, 32)
    assert (out.trajectory[:, 7:] == 0).all()
    assert out.token_ids is out.depth_codes is out.depth_cache is None
    assert out.passes == 0
    assert min(out.timing.values()) >= 0
    assert set(out.timing) >= {"preprocess", "post"}


def test_warming_again_compiles_nothing(policy):
    policy.warm("libero", max_task_tokens=16)
    assert policy.warm("libero", max_task_tokens=16) == 0


def test_layers_one_by_one_give_the_same_actions_as_a_loop(golden, policy):
    one = observation(8)
    unrolled = Policy.from_pretrained(golden / "tiny", dtype="float32", unroll=True)
    close(unrolled.predict_actions([one])[0].trajectory, policy.predict_actions([one])[0].trajectory)


def test_bfloat16_is_near_float32(golden, policy):
    one = observation(9)
    half = Policy.from_pretrained(golden / "tiny", unroll=False)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    ours, exact = (p.predict_actions([one])[0].trajectory for p in (half, policy))
    assert 1e-5 < np.abs(ours - exact).max() < 0.2 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("length", "padded"), [(1, 16), (16, 16), (17, 32), (256, 256), (257, 288), (512, 512), (513, 576)]
)
def test_buckets_grow_with_the_prompt(length, padded):
    assert observe.bucket(length) == padded


def test_a_question_without_pictures_is_answered_within_its_limit(policy):
    answer = policy.generate("what is this", max_tokens=5)
    assert isinstance(answer, str)


def test_generate_refuses_pictures_beside_a_video(policy):
    frames = np.zeros((4, 20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match=r"video: given together with images"):
        policy.generate("what", images=[frames[0]], video=(frames, 2.0))
    with pytest.raises(ValueError, match=r"video: .*expected frames"):
        policy.generate("what", video=(frames[0], 2.0))


def test_a_policy_without_expert_refuses_continuous_actions(golden, policy):
    cfg = dataclasses.replace(policy.cfg, expert=None)
    speaker = Policy(dataclasses.replace(policy.host, cfg=cfg), policy.params, unroll=False)
    one = observation(1)
    with pytest.raises(ValueError, match="mode: 'continuous', but the checkpoint has no action expert"):
        speaker.predict_actions([one])
