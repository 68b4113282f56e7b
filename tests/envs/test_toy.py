import numpy as np
import pytest

from molmoact2_jax.envs import base, experts, registry


@pytest.fixture
def env():
    env = registry.open_environment("toy", "go-red")
    yield env
    env.close()


def replay(env, demonstration):
    """Carries out the recorded actions from the recorded seed; returns states and the last outcome."""
    env.reset(demonstration.seed)
    for move in demonstration.moves:
        env.step(move)
    states = []
    for action in demonstration.executed:
        states.append(env.observe().state)
        outcome = env.step(action)
    return np.stack(states), outcome


def test_a_seed_decides_the_episode_whatever_came_before(env):
    first = env.reset(7)
    env.step(np.ones(2))
    env.reset(8)
    again = env.reset(7)
    np.testing.assert_array_equal(first.images["top"], again.images["top"])
    np.testing.assert_array_equal(first.state, again.state)


def test_both_tasks_start_from_the_same_picture(env):
    other = registry.open_environment("toy", "go-blue")
    np.testing.assert_array_equal(env.reset(3).images["top"], other.reset(3).images["top"])
    assert env.spec.instruction != other.spec.instruction


def test_a_clean_demonstration_executes_what_it_records(env):
    for seed in range(5):
        shown = experts.demonstrate(env, seed, experts.CLEAN)
        assert shown.success and shown.style == "clean" and len(shown.moves) == 0
        np.testing.assert_array_equal(shown.actions, shown.executed)


def test_replaying_executed_actions_reproduces_states_and_success(env):
    disturbance = experts.Disturbance(share=0.7, moved_share=0.7)
    styles = set()
    for seed in range(12):
        shown = experts.demonstrate(env, seed, disturbance)
        states, outcome = replay(env, shown)
        np.testing.assert_array_equal(states, shown.states)
        assert outcome.success == shown.success
        styles.add((shown.style, len(shown.moves) > 0))
    assert len(styles) > 2


def test_labels_of_a_disturbed_demonstration_are_the_experts(env):
    shown = experts.demonstrate(env, 1, experts.Disturbance(share=1.0, scales=(0.4,), moved_share=0.0))
    assert shown.style == "disturbed" and np.abs(shown.actions - shown.executed).max() > 0.1
    env.reset(1)
    for label, action in zip(shown.actions, shown.executed):
        np.testing.assert_array_equal(env.expert()(), label)
        env.step(action)


def test_the_still_channels_get_no_noise(env):
    disturbance = experts.Disturbance(share=1.0, moved_share=1.0, still="y")
    shown = experts.demonstrate(env, 2, disturbance)
    np.testing.assert_array_equal(shown.actions[:, 1], shown.executed[:, 1])
    assert np.abs(shown.actions[:, 0] - shown.executed[:, 0]).max() > 0.05


@pytest.mark.parametrize(
    ("action", "words"),
    [(np.zeros(3), r"shape \(3,\), expected \(2,\)"), (np.array([0, np.nan]), "channel y")],
)
def test_an_action_of_another_robot_is_refused_in_words(env, action, words):
    with pytest.raises(ValueError, match=words):
        env.step(action)


def test_actions_are_clipped_to_the_bounds(env):
    np.testing.assert_array_equal(base.checked(env.spec, np.array([5.0, -0.5])), np.float32([1.0, -0.5]))


def test_misspelt_names_list_near_ones():
    with pytest.raises(ValueError, match="Did you mean go-red"):
        registry.open_environment("toy", "go-rot")
    with pytest.raises(ValueError, match=r"expected one of \['metaworld', 'toy'\]"):
        registry.open_environment("tyo", "go-red")


def test_an_adapter_may_live_outside_the_library():
    assert registry.adapter("molmoact2_jax.envs.toy:Toy") is registry.adapter("toy")


def test_a_missing_simulator_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(registry.ADAPTERS, "gone", "no_such_simulator.adapter:Env")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'molmoact2-jax\[sim\]'"):
        registry.adapter("gone")
