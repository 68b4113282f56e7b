import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.models import llm, masks
from tests.train import small

LENGTH = 9
VARIANTS = {
    "qwen3": {},
    "olmo": dict(qk_norm="olmo"),
    "no_qk_norm": dict(qk_norm=None),
    "qkv_bias": dict(qkv_bias=True),
    "norm_after": dict(norm_after=True),
}


class Model:
    """A decoder with random weights, compiled once per shape."""

    def __init__(self, **changes):
        base = small.model()
        cfg = dataclasses.replace(base, llm=dataclasses.replace(base.llm, **changes))
        self.cfg, self.tree = cfg.llm, small.weights(cfg, scale=0.3)["llm"]
        self.forward = jax.jit(functools.partial(llm.forward, self.cfg), static_argnames="read")

    def run(self, tokens, positions, mask, start=0, **options):
        where = llm.Where(llm.rotary(self.cfg, jnp.asarray(positions)), mask, start)
        return self.forward(self.tree, llm.embed(self.cfg, self.tree, jnp.asarray(tokens)), where, **options)

    def causal(self, tokens, **options):
        size = tokens.shape[1]
        return self.run(tokens, np.arange(size)[None], np.tril(np.ones((1, size, size), bool)), **options)


@functools.cache
def model(variant="qwen3"):
    return Model(**VARIANTS[variant])


def draw(seed=0, length=LENGTH):
    return np.random.default_rng(seed).integers(50, 96, (1, length)).astype(np.int32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_with_a_cache_equals_one_pass(variant):
    tokens, one = draw(), model(variant)
    whole, kv = one.causal(tokens)
    cache = jax.tree.map(jnp.zeros_like, kv)
    for start, stop in ((0, 4), (4, 5), (5, LENGTH)):
        mask = np.arange(LENGTH) <= np.arange(start, stop)[None, :, None]
        x, cache = one.run(tokens[:, start:stop], np.arange(start, stop)[None], mask, start, cache=cache)
        np.testing.assert_allclose(x, whole[:, start:stop], atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), cache, kv)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_never_changes_its_past(variant):
    tokens = draw()
    changed = np.where(np.arange(LENGTH) >= 5, draw(1), tokens)
    before, after = (model(variant).causal(t) for t in (tokens, changed))
    past = lambda out: (out[0][:, :5], jax.tree.map(lambda a: a[:, :, :5], out[1]))  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, past(before), past(after))
    assert np.abs(before[0][:, 5:] - after[0][:, 5:]).max() > 0.1


@pytest.mark.parametrize("read", [0, 1, 3, LENGTH])
def test_reading_the_last_tokens_alone_changes_neither_them_nor_the_cache(read):
    tokens = draw()
    whole, kv = model().causal(tokens)
    x, same = model().causal(tokens, read=read)
    assert x.shape[1] == read
    np.testing.assert_allclose(x, whole[:, LENGTH - read :], atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), same, kv)


def test_padding_on_the_left_changes_neither_results_nor_keys():
    tokens, pad = draw(), 4
    padded = np.pad(tokens, ((0, 0), (pad, 0)))
    valid = np.arange(LENGTH + pad)[None] >= pad
    mask = masks.packed(np.where(valid, 0, -1))
    whole, kv = model().causal(tokens)
    x, longer = model().run(padded, masks.positions(valid), mask)
    np.testing.assert_allclose(x[:, pad:], whole, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:, :, pad:], b, atol=2e-5), longer, kv)


def test_the_training_pass_equals_the_inference_pass_and_returns_every_residual_stream():
    tokens, one = draw(), model()
    where = llm.Where(llm.rotary(one.cfg, jnp.arange(LENGTH)[None]), jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool)))
    x, kv, states = llm.train(one.cfg, one.tree, llm.embed(one.cfg, one.tree, tokens), where, hidden=True)
    whole, same = one.causal(tokens)
    np.testing.assert_allclose(x, whole, atol=2e-5)
    np.testing.assert_allclose(states[-1], whole, atol=2e-5)
    assert states.shape[0] == one.cfg.depth
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), kv, same)


def test_dropout_needs_keys_and_changes_the_residual_stream():
    tokens, one = draw(), model()
    where = llm.Where(llm.rotary(one.cfg, jnp.arange(LENGTH)[None]), jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool)))
    x = llm.embed(one.cfg, one.tree, tokens)
    keys = jax.random.split(jax.random.key(0), 1)

    def run(rate):
        return llm.train(one.cfg, one.tree, x, where, drop=llm.Dropout(rate, keys))[0]

    np.testing.assert_array_equal(run(0.0), llm.train(one.cfg, one.tree, x, where)[0])
    assert np.abs(run(0.3) - run(0.0)).max() > 0.1


def test_image_ids_read_the_second_table_and_minus_one_reads_row_zero():
    one = model()
    table, extra = one.tree["embedding"]["table"], one.tree["embedding"]["extra"]
    x = llm.embed(one.cfg, one.tree, jnp.array([[-1, 0, 95, 96, 103]]))[0]
    np.testing.assert_array_equal(x, [table[0], table[0], table[95], extra[0], extra[7]])


def test_logits_of_depth_codes_are_those_rows_of_the_head():
    one = model()
    x = np.random.default_rng(0).normal(size=(2, 3, one.cfg.width)).astype(np.float32)
    whole = llm.logits(one.cfg, one.tree, x)
    assert whole.shape == (2, 3, one.cfg.vocab_size)
    assert whole.dtype == jnp.float32
    np.testing.assert_allclose(llm.depth_logits(one.cfg, one.tree, x, 43, 16), whole[..., 43:59], atol=1e-5)
