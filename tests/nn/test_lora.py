import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.nn import lora, ops, paths

SHAPES = {
    "llm": {
        "blocks": {
            "q": ("layers embed heads head_dim", (2, 8, 4, 3)),
            "o": ("layers heads head_dim embed", (2, 4, 3, 8)),
            "q_bias": ("layers heads head_dim", (2, 4, 3)),
            "attn_norm": ("layers embed", (2, 8)),
        },
        "head": ("embed vocab", (8, 20)),
    },
    "expert": {"up": ("embed mlp", (6, 10))},
}
TARGETS = r"^llm/(blocks/(q|o)|head)$"
CFG = lora.LoRAConfig(TARGETS, rank=2, alpha=4.0)


def is_entry(node):
    return isinstance(node, tuple)


def tree():
    rng = np.random.default_rng(0)
    words = jax.tree.map(lambda e: tuple(e[0].split()), SHAPES, is_leaf=is_entry)
    return jax.tree.map(lambda e: jnp.asarray(rng.normal(size=e[1]), jnp.float32), SHAPES, is_leaf=is_entry), words


def attached(seed=0):
    return lora.attach(*tree(), CFG, jax.random.key(seed))


def trained():
    rng = np.random.default_rng(1)
    return jax.tree_util.tree_map_with_path(
        lambda p, x: jnp.asarray(rng.normal(size=x.shape), x.dtype) if paths.name(p).endswith("/up") else x, attached()
    )


def test_only_the_targets_become_low_rank():
    kinds = jax.tree.map(
        lambda n: isinstance(n, lora.LoRA), attached(), is_leaf=lambda n: isinstance(n, lora.LoRA | jax.Array)
    )
    assert kinds["llm"]["blocks"] == {"q": True, "o": True, "q_bias": False, "attn_norm": False}
    assert kinds["llm"]["head"] and not kinds["expert"]["up"]


def test_leaves_are_base_down_and_up_in_that_order():
    node = attached()["llm"]["blocks"]["o"]
    assert paths.names({"o": node}) == ["o/base", "o/down", "o/up"]
    assert [leaf.shape for leaf in jax.tree.leaves(node)] == [(2, 4, 3, 8), (2, 12, 2), (2, 2, 8)]


def test_a_fresh_adapter_is_the_identity():
    params, _ = tree()
    jax.tree.map(np.testing.assert_array_equal, lora.merge(attached()), params)


@pytest.mark.parametrize(
    ("name", "spec", "shape"), [("q", "btd,dnh->btnh", (2, 5, 8)), ("o", "btnh,nhd->btd", (2, 5, 4, 3))]
)
def test_merged_equals_unmerged(name, spec, shape):
    x = jax.random.normal(jax.random.key(2), shape)
    apart, merged = trained()["llm"]["blocks"][name], lora.merge(trained())["llm"]["blocks"][name]
    for layer in range(2):
        one, other = (jax.tree.map(lambda w: w[layer], w) for w in (apart, merged))  # noqa: B023
        np.testing.assert_allclose(ops.einsum(spec, x, one), ops.einsum(spec, x, other), rtol=1e-4, atol=1e-5)
    assert np.abs(merged - apart.base).max() > 0.1


def test_merging_matches_the_definition_layer_by_layer():
    node = trained()["llm"]["blocks"]["q"]
    for layer in range(2):
        change = 2.0 * node.down[layer] @ node.up[layer]  # alpha / rank = 2
        merged = lora.merge(node)[layer].reshape(8, 12)
        np.testing.assert_allclose(merged, node.base[layer].reshape(8, 12) + change, rtol=1e-5)


def test_merging_keeps_the_dtype_of_the_base():
    node = lora.LoRA(jnp.ones((4, 3), jnp.bfloat16), jnp.ones((4, 2)), jnp.ones((2, 3)), 0.5)
    assert lora.merge({"w": node})["w"].dtype == jnp.bfloat16


def test_down_has_the_standard_deviation_of_one_over_rank():
    params, words = {"w": jnp.zeros((400, 30))}, {"w": ("embed", "mlp")}
    node = lora.attach(params, words, lora.LoRAConfig("w", rank=16), jax.random.key(0))["w"]
    np.testing.assert_allclose(node.down.std(), 1 / 16, rtol=0.05)
    assert not node.up.any()


def test_the_start_of_a_weight_does_not_depend_on_the_other_targets():
    alone = lora.attach(*tree(), lora.LoRAConfig("^llm/head$", rank=2), jax.random.key(0))
    np.testing.assert_array_equal(alone["llm"]["head"].down, attached()["llm"]["head"].down)
    assert np.abs(attached(1)["llm"]["head"].down - attached(0)["llm"]["head"].down).max() > 0


def test_words_have_the_structure_and_rank_of_the_attached_tree():
    params, words = attached(), lora.attach_words(tree()[1], CFG)
    jax.tree.map(lambda leaf, dims: np.testing.assert_equal(leaf.ndim, len(dims)), params, words)
    assert words["llm"]["blocks"]["o"].down == ("layers", "heads", "rank")
    assert words["llm"]["blocks"]["q"].up == ("layers", "rank", "heads")


def test_it_attaches_to_abstract_trees():
    shapes = jax.eval_shape(lambda p: lora.attach(p, tree()[1], CFG, jax.random.key(0)), tree()[0])
    assert shapes["llm"]["head"].up.shape == (2, 20)


@pytest.mark.parametrize("target", ["q_bias$", "attn_norm$"])
def test_a_target_that_is_no_projection_is_refused(target):
    with pytest.raises(ValueError, match="expected inputs and outputs of a projection"):
        lora.attach(*tree(), lora.LoRAConfig(target), jax.random.key(0))


def test_a_target_that_matches_nothing_is_refused():
    with pytest.raises(
        ValueError, match=r"lora.targets: 'vit/' matches no parameter, expected at least one of expert/up"
    ):
        lora.attach(*tree(), lora.LoRAConfig("vit/"), jax.random.key(0))


def keyed(dropout, keys, name="q"):
    params, words = tree()
    attach = lora.LoRAConfig(TARGETS, rank=2, alpha=4.0, dropout=dropout)
    moved = jax.tree_util.tree_map_with_path(
        lambda p, x: jnp.ones_like(x) if paths.name(p).endswith("/up") else x,
        lora.attach(params, words, attach, jax.random.key(0)),
    )
    return lora.with_keys(moved, keys)["llm"]["blocks"][name]


def layer(node, index):
    return jax.tree.map(lambda w: w[index], node)


ROWS = jax.random.split(jax.random.key(3), 2)
X = jax.random.normal(jax.random.key(4), (2, 5, 8))


def test_dropout_changes_nothing_without_keys_or_at_rate_0():
    plain = ops.einsum("btd,dnh->btnh", X, layer(keyed(0.0, None), 0))
    for node in (keyed(0.5, None), keyed(0.0, ROWS)):
        assert node.keys is None
        np.testing.assert_array_equal(ops.einsum("btd,dnh->btnh", X, layer(node, 0)), plain)


def test_the_expectation_over_dropout_is_the_change_without_it():
    many = jax.random.split(jax.random.key(5), 4000).reshape(2000, 2)
    draw = jax.jit(jax.vmap(lambda keys: ops.einsum("btd,dnh->btnh", X, layer(keyed(0.5, keys), 1))))
    values = np.asarray(draw(many))
    plain = np.asarray(ops.einsum("btd,dnh->btnh", X, layer(keyed(0.0, None), 1)))
    error = values.std(axis=0) / len(values) ** 0.5
    assert values.std(axis=0).min() > 0.01
    assert (np.abs(values.mean(axis=0) - plain) < 5 * error + 1e-5).all()


def test_a_fresh_adapter_is_the_identity_under_dropout_too():
    node = layer(lora.with_keys(attached(), ROWS)["llm"]["blocks"]["q"], 0)
    np.testing.assert_array_equal(ops.einsum("btd,dnh->btnh", X, node), ops.einsum("btd,dnh->btnh", X, node.base))


def test_the_draws_of_a_row_depend_on_its_key_alone():
    both = ops.einsum("btd,dnh->btnh", X, layer(keyed(0.5, ROWS), 0))
    alone = ops.einsum("btd,dnh->btnh", X[1:], layer(keyed(0.5, ROWS[1:]), 0))
    np.testing.assert_allclose(both[1:], alone, rtol=1e-5, atol=1e-5)


def test_layers_and_weights_draw_apart():
    data = [jax.random.key_data(layer(keyed(0.5, ROWS, name), i).keys).tolist() for name in "qo" for i in range(2)]
    assert len({str(keys) for keys in data}) == 4


def test_several_crops_of_a_row_share_its_key_but_not_their_draws():
    crops = jnp.tile(X[:, None], (1, 3, 1, 1)).reshape(6, 5, 8)
    values = ops.einsum("btd,dnh->btnh", crops, layer(keyed(0.5, ROWS), 0)).reshape(2, 3, 5, 4, 3)
    assert np.abs(values[:, 0] - values[:, 1]).max() > 0.1


def test_merging_ignores_dropout():
    np.testing.assert_array_equal(lora.merge(keyed(0.5, ROWS)), lora.merge(keyed(0.0, None)))


@pytest.mark.parametrize("wrong", [dict(rank=0), dict(dropout=1.0), dict(dropout=-0.1)])
def test_a_rank_or_rate_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="expected a positive rank and a dropout"):
        lora.LoRAConfig(TARGETS, **wrong)
