import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.models import expert
from molmoact2_jax.models.llm import KV
from molmoact2_jax.nn import params
from tests.train import small

MODEL = small.model()
CFG = MODEL.expert
STEPS, CHANNELS, CONTEXT = 5, CFG.action_dim, 7


@functools.cache
def weights(cfg):
    return small.weights(dataclasses.replace(MODEL, expert=cfg), scale=0.2)["expert"]


@functools.cache
def compiled(cfg):
    return jax.jit(functools.partial(expert.velocity, cfg))


def inputs(groups=1, seed=0):
    """Chunks of one row, the modulation at a time per chunk, and the row's context."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    shifts = expert.Modulation(draw(CFG.depth, 1, groups, 9, CFG.width), draw(1, groups, 2, CFG.width))
    kv = KV(*(draw(CFG.depth, 1, CONTEXT, CFG.num_heads, CFG.head_dim) for _ in range(2)))
    return draw(1, groups, STEPS, CHANNELS), shifts, kv, expert.Masks(np.ones((1, groups, CONTEXT), bool))


def velocity(x, shifts, kv, masks, cfg=CFG):
    return np.asarray(compiled(cfg)(weights(cfg), x, shifts, kv, masks=masks))


def test_the_velocity_of_a_fresh_expert_is_zero():
    fresh, _ = params.unbox(expert.init(CFG, jax.random.key(0)))
    x, _, kv, masks = inputs()
    at = expert.modulation(CFG, fresh, jnp.array([0.3]))
    shifts = expert.Modulation(at.blocks[:, :, None], at.final[:, None])
    np.testing.assert_array_equal(compiled(CFG)(fresh, x, shifts, kv, masks=masks), 0)
    assert np.abs(velocity(x, *inputs()[1:])).max() > 0.1


def test_chunks_that_share_a_context_are_computed_one_by_one():
    x, shifts, kv, masks = inputs(groups=3)
    visible = np.random.default_rng(1).random(masks.context.shape) < 0.7
    together = velocity(x, shifts, kv, expert.Masks(visible))
    for g in range(3):
        one = slice(g, g + 1)
        at = expert.Modulation(shifts.blocks[:, :, one], shifts.final[:, one])
        alone = velocity(x[:, one], at, kv, expert.Masks(visible[:, one]))
        np.testing.assert_allclose(together[:, one], alone, atol=2e-5)


def test_hidden_context_changes_nothing():
    x, shifts, kv, _ = inputs()
    visible = np.arange(CONTEXT) < 4
    other = KV(*(np.where(visible[:, None, None], a, 9.0).astype(np.float32) for a in kv))
    masks = expert.Masks(visible[None, None])
    np.testing.assert_array_equal(velocity(x, shifts, kv, masks), velocity(x, shifts, other, masks))


def test_steps_past_the_horizon_are_zero_and_unread():
    x, shifts, kv, masks = inputs()
    steps = (np.arange(STEPS) < 3)[None, None]
    long = np.where(steps[..., None], x, 5.0).astype(np.float32)
    cut = velocity(long, shifts, kv, masks._replace(steps=steps))
    np.testing.assert_array_equal(cut[:, :, 3:], 0)
    np.testing.assert_allclose(cut[:, :, :3], velocity(x[:, :, :3], shifts, kv, masks), atol=2e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_only_a_causal_expert_hides_later_steps_from_earlier_ones(causal):
    cfg = dataclasses.replace(CFG, causal=causal)
    x, *rest = inputs()
    later = x.copy()
    later[:, :, 3:] += 1
    moved = np.abs(velocity(x, *rest, cfg=cfg) - velocity(later, *rest, cfg=cfg))[0, 0].max(axis=-1)
    assert (moved[3:] > 1e-3).all()
    assert (moved[:3] == 0).all() if causal else (moved[:3] > 1e-4).all()


@pytest.mark.parametrize("field", ["rope", "qk_norm"])
def test_a_switch_of_the_configuration_changes_the_velocity(field):
    off = dataclasses.replace(CFG, **{field: False})
    assert np.abs(velocity(*inputs()) - velocity(*inputs(), cfg=off)).max() > 1e-3


def test_without_rotation_the_order_of_steps_means_nothing():
    cfg = dataclasses.replace(CFG, rope=False)
    x, *rest = inputs()
    backward = velocity(x[:, :, ::-1], *rest, cfg=cfg)[:, :, ::-1]
    np.testing.assert_allclose(velocity(x, *rest, cfg=cfg), backward, atol=2e-5)
    assert np.abs(velocity(x, *rest) - velocity(x[:, :, ::-1], *rest)[:, :, ::-1]).max() > 1e-3


def test_modulation_at_several_times_is_that_at_each():
    times = jnp.array([0.0, 0.3, 0.9])
    together = expert.modulation(CFG, weights(CFG), times)
    for j in range(3):
        alone = expert.modulation(CFG, weights(CFG), times[j : j + 1])
        np.testing.assert_allclose(together.blocks[:, j], alone.blocks[:, 0], atol=1e-5)
        np.testing.assert_allclose(together.final[j], alone.final[0], atol=1e-5)
    assert np.abs(together.final[0] - together.final[2]).max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_the_context_norm_removes_the_scale_of_what_the_decoder_offers(scale):
    source = np.random.default_rng(0).normal(size=(CFG.depth, 1, 4, CFG.context_width)).astype(np.float32)
    normed = expert.project_context(CFG, weights(CFG), scale * source, scale * source)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(normed.v), axis=(-2, -1))), 1, rtol=1e-3)
    raw = dataclasses.replace(CFG, context_norm=False)
    plain, scaled = (expert.project_context(raw, weights(raw), source, k * source).v for k in (1, scale))
    np.testing.assert_allclose(scaled, scale * plain, rtol=1e-4, atol=1e-5)


def test_the_expert_computes_in_the_type_of_its_weights():
    small_weights = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights(CFG))
    at, exact = (expert.modulation(CFG, tree, jnp.array([0.3, 0.9])) for tree in (small_weights, weights(CFG)))
    assert at.blocks.dtype == at.final.dtype == jnp.bfloat16
    np.testing.assert_allclose(at.blocks.astype(np.float32), exact.blocks, atol=0.05)
