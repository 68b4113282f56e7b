import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.nn import ops


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("spec", "x", "w"),
    [
        ("btd,dnh->btnh", (2, 3, 8), (8, 4, 2)),
        ("btnh,nhd->btd", (2, 3, 4, 2), (4, 2, 8)),
        ("bd,dme->bme", (5, 6), (6, 9, 6)),
    ],
)
def test_a_projection_is_the_einsum_it_is_written_as(spec, x, w):
    x, w = draw(*x), draw(*w, seed=1)
    np.testing.assert_allclose(ops.einsum(spec, x, w), np.einsum(spec, x, w), atol=1e-5)


def test_rms_norm_divides_by_the_root_mean_square_and_scales():
    x, weight = draw(3, 8), draw(8, seed=1)
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(ops.rms_norm(x), expected, rtol=1e-6)
    np.testing.assert_allclose(ops.rms_norm(x, weight), expected * weight, rtol=1e-5)


def test_layer_norm_has_mean_zero_and_variance_one_before_scale_and_bias():
    y = ops.layer_norm(draw(3, 64), np.ones(64, np.float32), np.zeros(64, np.float32), 0.0)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(axis=-1), 1, rtol=1e-5)
    weight, bias = draw(64, seed=1), draw(64, seed=2)
    np.testing.assert_allclose(ops.layer_norm(draw(3, 64), weight, bias, 0.0), y * weight + bias, atol=1e-5)


def test_norms_of_bfloat16_are_computed_in_float32():
    x = jnp.asarray(1 + 1e-2 * draw(4, 4096), jnp.bfloat16)
    exact = ops.rms_norm(x.astype(jnp.float32))
    assert ops.rms_norm(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(ops.rms_norm(x), exact.astype(jnp.bfloat16))


def test_rotated_products_depend_on_distance_alone_and_lengths_stay():
    q, k = draw(1, 1, 1, 16), draw(1, 1, 1, 16, seed=1)

    def turned(x, position):
        return ops.rope(x, ops.rotary(jnp.array([[position]]), 1e4, 16))

    near, far = (float(jnp.sum(turned(q, p) * turned(k, p - 3))) for p in (5, 400))
    np.testing.assert_allclose(near, far, atol=1e-4)
    assert abs(near - float(jnp.sum(turned(q, 5) * turned(k, 1)))) > 1e-2
    np.testing.assert_allclose(jnp.linalg.norm(turned(q, 77)), np.linalg.norm(q), rtol=1e-5)


def test_rotation_pairs_the_two_halves_of_a_head():
    turn = ops.rotary(jnp.array([[1]]), 1e4, 4)
    x = ops.rope(jnp.array([1.0, 0, 0, 0])[None, None, None], turn)[0, 0, 0]
    np.testing.assert_allclose(x, [np.cos(1), 0, np.sin(1), 0], atol=1e-6)


def plain_attention(q, k, v, mask):
    """Attention written head by head, with keys repeated for their groups."""
    groups = q.shape[2] // k.shape[2]
    k, v = (np.repeat(a, groups, axis=2) for a in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(mask[:, None], scores, np.finfo(np.float32).min)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_attention_with_grouped_keys_is_softmax_attention(heads):
    q, k, v = draw(2, 5, 4, 8), draw(2, 7, heads, 8, seed=1), draw(2, 7, heads, 8, seed=2)
    mask = np.random.default_rng(3).random((2, 5, 7)) < 0.6
    np.testing.assert_allclose(ops.attend(q, k, v, mask), plain_attention(q, k, v, mask), atol=1e-5)
    np.testing.assert_allclose(ops.attend(q, k, v), plain_attention(q, k, v, np.ones_like(mask)), atol=1e-5)


@pytest.mark.parametrize("heads", [4, 1])
def test_fused_attention_is_the_attention_it_replaces(heads):
    q, k, v = draw(2, 5, 4, 8), draw(2, 7, heads, 8, seed=1), draw(2, 7, heads, 8, seed=2)
    for mask in (None, np.random.default_rng(3).random((2, 5, 7)) < 0.6, np.arange(7)[None, None].repeat(2, 0) < 4):
        np.testing.assert_allclose(ops.ATTENTION["xla"](q, k, v, mask), ops.attend(q, k, v, mask), atol=1e-5)


def test_a_masked_key_may_hold_anything_finite():
    q, k, v = draw(1, 3, 2, 4), draw(1, 6, 2, 4, seed=1), draw(1, 6, 2, 4, seed=2)
    mask = np.broadcast_to(np.arange(6) < 4, (1, 3, 6))
    changed = [np.where((np.arange(6) < 4)[None, :, None, None], a, 1e6).astype(np.float32) for a in (k, v)]
    np.testing.assert_array_equal(ops.attend(q, k, v, mask), ops.attend(q, *changed, mask))


def test_a_query_without_any_key_attends_to_all_equally():
    k, v = draw(1, 6, 2, 4, seed=1), draw(1, 6, 2, 4, seed=2)
    y = ops.attend(draw(1, 1, 2, 4), k, v, np.zeros((1, 1, 6), bool))
    np.testing.assert_allclose(y[0, 0], v[0].mean(axis=0), atol=1e-6)


def test_the_gradient_of_attention_is_that_of_plain_softmax():
    q, k, v = (draw(1, 4, 2, 4, seed=s) for s in range(3))
    mask = np.tril(np.ones((1, 4, 4), bool))

    def plain(q, k, v):
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / 2
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
        return jnp.sum(jnp.sin(jnp.einsum("bnts,bsnh->btnh", weights, v)))

    ours = jax.grad(lambda *a: jnp.sum(jnp.sin(ops.attend(*a, mask))), argnums=(0, 1, 2))(q, k, v)
    for a, b in zip(ours, jax.grad(plain, argnums=(0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_mask_without_a_query_axis_is_refused_in_words():
    q = draw(2, 3, 2, 4)
    with pytest.raises(ValueError, match=r"attend: mask is \(2, 3\), expected \(B, T, S\) = \(2, 3, 3\)"):
        ops.attend(q, q, q, np.ones((2, 3), bool))


def test_dropout_of_a_row_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    x = np.ones((3, 4, 50), np.float32)
    together = ops.dropout(x, 0.25, keys)
    np.testing.assert_array_equal(together[1:2], ops.dropout(x[1:2], 0.25, keys[1:2]))
    assert set(np.unique(together)) == {0.0, np.float32(1 / 0.75)}
    assert 0.7 < float(np.mean(np.asarray(together) > 0)) < 0.8
    assert ops.dropout(x, 0.25, None) is x


def test_activations_are_the_named_ones():
    x = np.linspace(-3, 3, 13, dtype=np.float32)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    np.testing.assert_allclose(ops.ACTIVATIONS["silu"](x), x * sigmoid(x), atol=1e-6)
    np.testing.assert_allclose(ops.ACTIVATIONS["quick_gelu"](x), x * sigmoid(1.702 * x), atol=1e-6)
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(ops.ACTIVATIONS["gelu_pytorch_tanh"](x), tanh, atol=1e-6)
    assert 1e-5 < np.abs(ops.ACTIVATIONS["gelu"](x) - tanh).max() < 1e-3
