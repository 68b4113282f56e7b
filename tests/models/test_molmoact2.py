import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.models import flow, molmoact2
from molmoact2_jax.serve import runner
from tests.models import prompts
from tests.train import small

STEPS = 3
NOISE = np.random.default_rng(9).normal(size=(3, 4, 32)).astype(np.float32)
ROBOT = np.arange(32) < np.array([[5], [7], [5]])


def model(conditioning="kv", **changes):
    base = small.model(**changes)
    return dataclasses.replace(base, expert=dataclasses.replace(base.expert, conditioning=conditioning))


@functools.cache
def weights(cfg):
    return small.weights(cfg, scale=0.25)


@functools.partial(jax.jit, static_argnums=0)
def trajectory(cfg, tree, inputs, noise, channels):
    prefix, _ = molmoact2.prefill(cfg, tree, inputs)
    shifts = molmoact2.modulation(cfg, tree, STEPS)
    return molmoact2.act(cfg, tree, shifts, molmoact2.context(cfg, tree, prefix), noise, channels=channels)


def act(cfg, inputs, rows=slice(0, 1)):
    return np.asarray(trajectory(cfg, weights(cfg), inputs, NOISE[rows], ROBOT[rows]))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("conditioning", ["kv", "kv_heads", "hidden"])
def test_padding_changes_nothing(conditioning):
    cfg, row = model(conditioning), prompts.row(0, 11)
    plain = act(cfg, prompts.pad(row))
    close(act(cfg, prompts.pad(row, length=16)), plain)
    assert np.abs(plain - act(cfg, prompts.pad(prompts.row(1, 11)))).max() > 1e-3


def test_a_batch_of_mixed_lengths_and_pictures_equals_one_by_one():
    cfg = model()
    rows = [prompts.row(0, 11, pictures=2), prompts.row(1, 7), prompts.row(2, 14, pictures=2)]
    together = act(cfg, prompts.pad(*rows), slice(0, 3))
    for i, row in enumerate(rows):
        close(together[i : i + 1], act(cfg, prompts.pad(row), slice(i, i + 1)))


def test_layers_one_by_one_equal_layers_as_a_loop():
    cfg = model(gate="per_layer")
    inputs, tree = prompts.pad(prompts.row(0, 11)), jax.tree.map(jnp.asarray, weights(cfg))
    looped = trajectory(cfg, tree, inputs, NOISE[:1], ROBOT[:1])
    close(trajectory(cfg, runner.unstack(tree), inputs, NOISE[:1], ROBOT[:1]), looped)


def last_keys(cfg, row):
    prefix, _ = jax.jit(molmoact2.prefill, static_argnums=0)(cfg, weights(cfg), prompts.pad(row))
    return np.asarray(prefix.kv.k)[-1, 0]


def test_the_switch_decides_whether_a_picture_sees_a_later_one():
    row = prompts.row(0, 11, pictures=2)
    other = dataclasses.replace(row, crops=np.stack([row.crops[0], 255 - row.crops[1]]))
    moved = {}
    for both_ways in (True, False):
        cfg = model(bidirectional_images=both_ways)
        moved[both_ways] = np.abs(last_keys(cfg, row) - last_keys(cfg, other)).max(axis=(1, 2))
    first = slice(1, 4)  # tokens of the first picture
    assert (moved[True][first] > 1e-4).all()
    assert (moved[False][first] == 0).all()
    assert moved[True][0] == moved[False][0] == 0  # the token before the pictures sees neither


def test_a_prompt_without_pictures_is_prefilled():
    cfg, row = model(), prompts.row(0, 8, pictures=0)
    assert np.isfinite(act(cfg, prompts.pad(row))).all()


def test_channels_that_the_robot_lacks_stay_zero_where_the_model_masks_them():
    cfg, inputs = model(), prompts.pad(prompts.row(0, 11))
    masked, free = act(cfg, inputs), act(dataclasses.replace(cfg, mask_action_dims=False), inputs)
    assert (masked[..., 5:] == 0).all()
    assert (np.abs(masked[..., :5]) > 0).all()
    assert (np.abs(free[..., 5:]) > 0).any()


@pytest.mark.parametrize("solver", sorted(flow.SOLVERS))
def test_every_registered_solver_takes_the_modulation_of_its_own_times(solver):
    cfg = model(flow=dataclasses.replace(small.model().flow, solver=solver))
    shifts = molmoact2.modulation(cfg, weights(cfg), STEPS)
    assert len(shifts.final) == len(flow.SOLVERS[solver].times(STEPS))
    euler = act(model(), prompts.pad(prompts.row(0, 11)))
    ours = act(cfg, prompts.pad(prompts.row(0, 11)))
    assert np.isfinite(ours).all()
    assert (ours == euler).all() == (solver == "euler")


def test_a_registered_solver_of_ones_own_is_found_by_its_name(monkeypatch):
    doubled = dataclasses.replace(flow.SOLVERS["euler"], step=lambda v, x, i, n: x + (2 / n) * v(x, i))
    monkeypatch.setitem(flow.SOLVERS, "doubled", doubled)
    cfg = model(flow=dataclasses.replace(small.model().flow, solver="doubled"))
    inputs = prompts.pad(prompts.row(0, 11))
    assert np.abs(act(cfg, inputs) - act(model(), inputs)).max() > 1e-4


def test_features_are_added_to_the_patch_tokens_in_their_order():
    cfg = model()
    tokens = jnp.array([[1, 98, 60, 98]])
    features = np.arange(2 * cfg.llm.width, dtype=np.float32).reshape(1, 2, -1)
    plain = molmoact2.embed(cfg, weights(cfg), tokens, None)
    added = molmoact2.embed(cfg, weights(cfg), tokens, features) - plain
    np.testing.assert_allclose(added[0, [1, 3]], features[0], atol=1e-4)
    np.testing.assert_array_equal(added[0, [0, 2]], 0)


def test_the_abstract_tree_has_the_words_and_shapes_of_the_real_one():
    cfg = model(gate="per_layer")
    shapes, words = molmoact2.abstract(cfg)
    made = molmoact2.params.unbox(molmoact2.init(cfg, jax.random.key(0)))
    jax.tree.map(lambda a, b: None if a.shape == b.shape else pytest.fail(f"{a} {b}"), shapes, made[0])
    assert words == made[1]
