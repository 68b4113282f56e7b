import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.nn import params

CFG = types.SimpleNamespace(dims=dict(layers=3, embed=4, heads=2, head_dim=3), norm_eps=1e-6, init_std=0.02)


class Layer(nn.Module):
    """A projection into heads with a bias, and a norm."""

    cfg: object

    @nn.compact
    def __call__(self, x):
        y = params.linear(self, "q", "btd,dnh->btnh", params.norm(self, "norm", x), "embed heads head_dim", bias=True)
        return y


@pytest.fixture(scope="module")
def layers():
    rng = np.random.default_rng(0)
    return dict(w=rng.normal(size=(3, 4, 4)).astype(np.float32), b=rng.normal(size=(3, 4)).astype(np.float32))


def block(weights, carry, x=0.0):
    y = jnp.tanh(carry @ weights["w"] + weights["b"] + x)
    return y, y.sum()


def split(tree):
    return tuple({name: a[i] for name, a in tree.items()} for i in range(3))


def test_words_give_shapes_axes_and_the_bias_of_a_projection():
    values, words = params.unbox(params.init(Layer(CFG), jax.random.key(0), jnp.zeros((1, 2, 4))))
    assert jax.tree.map(jnp.shape, values) == {"q": (4, 2, 3), "q_bias": (2, 3), "norm": (4,)}
    assert words == {"q": ("embed", "heads", "head_dim"), "q_bias": ("heads", "head_dim"), "norm": ("embed",)}


def test_stacked_copies_differ_and_lead_with_layers():
    values, words = params.unbox(params.init(Layer(CFG), jax.random.key(0), jnp.zeros((1, 2, 4)), layers=3))
    assert values["q"].shape == (3, 4, 2, 3)
    assert words["norm"] == ("layers", "embed")
    assert not np.allclose(values["q"][0], values["q"][1])


def test_unrolled_layers_are_those_of_the_stack(layers):
    for ours, theirs in zip(params.unrolled(layers), split(layers), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_compiled_loop_equals_layers_one_by_one(layers):
    x = jnp.arange(4.0) / 4
    looped, sums = params.scan(block, layers, x)
    unrolled, parts = params.scan(block, split(layers), x)
    np.testing.assert_allclose(looped, unrolled, atol=1e-6)
    np.testing.assert_allclose(sums, params.stacked(parts), atol=1e-6)


def test_inputs_per_layer_reach_their_layer_whichever_way_layers_are_held(layers):
    x, extra = jnp.zeros(4), jnp.arange(3.0)
    results = [params.scan(block, held, x, more)[0]
               for held in (layers, split(layers)) for more in (extra, tuple(extra))
               if not (held is layers and type(more) is tuple)]  # fmt: skip
    assert len(results) == 3
    for other in results[1:]:
        np.testing.assert_allclose(results[0], other, atol=1e-6)
    assert not np.allclose(results[0], params.scan(block, layers, x, extra[::-1])[0])


def test_stopping_before_a_layer_and_appending_it_is_running_all(layers):
    for held in (layers, split(layers)):
        x, sums = params.scan(block, held, jnp.ones(4), stop=2)
        x, last = block(params.layer(held, 2), x)
        whole, all_sums = params.scan(block, held, jnp.ones(4))
        np.testing.assert_allclose(x, whole, atol=1e-6)
        joined = params.stacked(params.append(sums, last))
        np.testing.assert_allclose(joined, params.stacked(all_sums), atol=1e-6)


def test_rematerialisation_changes_no_gradient(layers):
    def loss(held, **options):
        return jnp.sum(params.scan(block, held, jnp.ones(4), **options)[0])

    plain = jax.grad(loss)(layers)
    again = jax.grad(lambda held: loss(held, remat=jax.checkpoint_policies.nothing_saveable))(layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, again)


def test_xavier_bounds_follow_the_inputs_and_outputs():
    wide = params.xavier()(jax.random.key(0), (100, 300, 2))
    bound = (6 / (100 + 600)) ** 0.5
    assert 0.98 * bound < float(jnp.abs(wide).max()) <= bound
    split_inputs = params.xavier(0.5, inputs=2)(jax.random.key(0), (100, 300, 2))
    bound = 0.5 * (6 / (30_000 + 2)) ** 0.5
    assert 0.98 * bound < float(jnp.abs(split_inputs).max()) <= bound
