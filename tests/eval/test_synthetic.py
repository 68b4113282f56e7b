import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax import presets
from molmoact2_jax.eval import synthetic
from molmoact2_jax.models import molmoact2
from molmoact2_jax.train import losses, memory, recipe

TINY = presets.preset("tiny")


def test_weights_have_the_shapes_of_the_model_the_dtype_asked_for_and_norms_of_one():
    made = synthetic.weights(TINY, "bfloat16")
    shapes, _ = molmoact2.abstract(TINY)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("bfloat16")}
    assert (np.asarray(made["llm"]["blocks"]["attn_norm"]) == 1).all()
    assert 0.015 < np.asarray(made["llm"]["blocks"]["q"], np.float32).std() < 0.025


def test_weights_of_equal_shape_differ_and_the_seed_repeats_them():
    first, again = (synthetic.weights(TINY, "float32", seed=3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (np.asarray(first["llm"]["blocks"]["k"]) != np.asarray(first["llm"]["blocks"]["v"])).any()


def test_a_prompt_has_an_id_for_every_image_token_and_takes_any_longer_length():
    row = synthetic.prompt_row(TINY, synthetic.pictures(2, 48, 64), depth=False)
    assert (row.tokens == TINY.tokens.image_patch).sum() == len(row.pooling)
    assert row.crops.shape == (2, 70, 70, 3)
    longer = synthetic.lengthen(TINY, row, len(row.tokens) + 40)
    assert len(longer.tokens) == len(row.tokens) + 40
    np.testing.assert_array_equal(longer.tokens[longer.tokens != synthetic.FILLER], row.tokens[row.tokens != 64])
    with pytest.raises(ValueError, match=r"prompt_tokens: 10, expected at least"):
        synthetic.lengthen(TINY, row, 10)


def test_packed_rows_have_the_shapes_that_the_step_is_planned_with():
    data = recipe.DataConfig(robots=(recipe.RobotSet("none", "none"),), tokens=200, crops=4, chunks=2)
    made = synthetic.packed(TINY, rows=3, tokens=200, crops=4, chunks=2)
    for name, like in memory.rows(TINY, data, 3)._asdict().items():
        assert (getattr(made, name).shape, getattr(made, name).dtype) == (like.shape, like.dtype), name


def test_packed_rows_give_both_losses_to_every_example():
    made = synthetic.packed(TINY, rows=1, tokens=150, crops=3, chunks=3)
    rows = losses.Rows(*(jnp.asarray(getattr(made, name)) for name in losses.Rows._fields))
    weights = synthetic.weights(TINY, "float32")
    problem = losses.Problem(TINY, losses.LossConfig(num_samples=2, dropout=0.0))
    value, found = jax.jit(lambda w, r: losses.total(problem, w, r, losses.totals(r), None))(weights, rows)
    assert np.isfinite(value)
    assert found["sum/chunks"] == 3
    assert set(np.unique(made.segments[made.weights > 0])) == {0, 100_000, 200_000}


def test_rows_that_their_pictures_fill_are_refused():
    with pytest.raises(ValueError, match="Take longer rows or fewer crops"):
        synthetic.packed(TINY, rows=1, tokens=60, crops=8, chunks=2)
