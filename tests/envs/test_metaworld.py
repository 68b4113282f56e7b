import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from molmoact2_jax.envs import experts, registry, rendering

if importlib.util.find_spec("metaworld") is None:
    pytest.skip("the sim extra is not installed", allow_module_level=True)
try:
    rendering.choose()
except OSError as error:
    pytest.skip(str(error), allow_module_level=True)

SIX = ("faucet-open", "faucet-close", "drawer-open", "drawer-close", "window-open", "window-close")


@pytest.fixture(scope="module")
def faucet():
    env = registry.open_environment("metaworld", "faucet-open")
    yield env
    env.close()


def test_every_task_of_the_simulator_has_an_instruction():
    import metaworld

    known = {f"{task}-v3" for task in registry.adapter("metaworld").instructions()}
    assert known == set(metaworld.MT1.ENV_NAMES)


def test_a_seed_decides_the_episode_to_the_bit_whatever_came_before(faucet):
    def run(env, seed):
        frame, act, states = env.reset(seed), env.expert(), []
        for _ in range(5):
            env.step(act())
            states.append(env.observe().state)
        return frame.images["corner2"], np.stack(states)

    first, other, again = run(faucet, 5000), run(faucet, 5001), run(faucet, 5000)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.abs(first[0].astype(int) - other[0]).mean() > 0.1


def test_depth_is_measured_where_the_picture_shows_it(faucet):
    env = registry.open_environment("metaworld", "faucet-open", depth=True)
    before, act = env.reset(5000), env.expert()
    np.testing.assert_array_equal(before.images["corner2"], faucet.reset(5000).images["corner2"])
    for _ in range(8):
        env.step(act())
    after = env.observe()
    env.close()
    assert before.depth.shape == before.images["corner2"].shape[:2] and before.depth.dtype == np.float32
    assert 0.1 < before.depth.min() < np.median(before.depth) < 10
    moved = np.abs(after.depth - before.depth) > 0.02
    drawn = np.abs(after.images["corner2"].astype(int) - before.images["corner2"]).max(axis=-1) > 8
    assert moved.sum() > 20
    assert drawn[moved].mean() > 0.8 > 5 * drawn.mean()


@pytest.mark.parametrize("task", SIX)
def test_the_expert_succeeds_within_the_horizon(task):
    env = registry.open_environment("metaworld", task)
    for seed in (5000, 5001):
        shown = experts.demonstrate(env, seed, experts.CLEAN)
        assert shown.success and len(shown.actions) < 40
        np.testing.assert_array_equal(shown.actions, shown.executed)
        assert shown.images["corner2"].shape == (len(shown.actions), 64, 64, 3)
    env.close()


def test_replaying_a_disturbed_episode_reproduces_it(faucet):
    shown = experts.demonstrate(faucet, 1001, experts.Disturbance(share=1.0, moved_share=1.0))
    faucet.reset(shown.seed)
    for move in shown.moves:
        faucet.step(move)
    for state, action in zip(shown.states, shown.executed):
        np.testing.assert_array_equal(faucet.observe().state, state)
        outcome = faucet.step(action)
    assert outcome.success == shown.success
    np.testing.assert_array_equal(shown.actions[:, 3], shown.executed[:, 3])


def test_the_faucet_pair_starts_from_nearly_the_same_picture(faucet):
    other = registry.open_environment("metaworld", "faucet-close")
    pair = [env.reset(5003).images["corner2"].astype(int) for env in (faucet, other)]
    assert np.abs(pair[0] - pair[1]).mean() < 3
    other.close()


@pytest.mark.parametrize(("task", "other"), [SIX[:2], SIX[1::-1]])
def test_turning_the_faucet_the_other_way_is_no_success(task, other):
    import metaworld.policies

    env = registry.open_environment("metaworld", task)
    for seed in (5000, 5001):
        env.reset(seed)
        policy = metaworld.policies.ENV_POLICY_MAP[f"{other}-v3"]()
        outcomes = [env.step(np.clip(policy.get_action(env._observed), -1, 1)) for _ in range(60)]
        assert not any(outcome.success for outcome in outcomes)
    env.close()


def test_the_window_is_a_part_of_the_whole_picture(faucet):
    whole = registry.open_environment("metaworld", "faucet-open", window=None)
    np.testing.assert_array_equal(
        faucet.reset(5000).images["corner2"], whole.reset(5000).images["corner2"][4:68, 32:96]
    )
    whole.close()


def test_misspelt_tasks_list_near_ones():
    with pytest.raises(ValueError, match="Did you mean faucet-open"):
        registry.open_environment("metaworld", "facet-open")


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("os.environ['MUJOCO_GL'] = 'glfw'", "MUJOCO_GL=glfw without a display"),
        ("os.environ.pop('MUJOCO_GL', None); import mujoco", "imported before"),
        ("os.environ['MUJOCO_GL'] = 'egg'", "MUJOCO_GL=egg without a display"),
    ],
)
def test_a_backend_that_cannot_work_is_refused_in_words(before, words):
    source = (
        f"import os; os.environ.pop('DISPLAY', None); {before}\n"
        "from molmoact2_jax.envs import registry\n"
        "try: registry.open_environment('metaworld', 'reach').close()\n"
        "except OSError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", source], capture_output=True, text=True, timeout=120)
    assert words in result.stdout and result.returncode == 0, result.stderr[-2000:]
