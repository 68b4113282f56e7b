"""The schedule of depth passes against plain decoding, one token at a time."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.data import images
from molmoact2_jax.models import decode, llm, molmoact2
from tests.train import small

CELLS, PROMPT = 36, 14
SPAN = CELLS + 2
WIDTHS = ((SPAN,), (2, SPAN), (5, 13, SPAN), (24, SPAN))
TIE = 1e-5  # of the largest logit: rounding decides between nearer ones
CFG = dataclasses.replace(small.model(), num_depth_codes=CELLS, depth_reasoning=True, action_mode="continuous")


@dataclasses.dataclass
class Case:
    """A checkpoint, a prompt of one row with a picture, and a cache of which some cells changed."""

    params: dict
    inputs: molmoact2.Inputs
    draft: np.ndarray
    changed: np.ndarray


def case(seed):
    """Draws a case; how far depth embeddings lie apart says how strongly a code depends on the one before."""
    rng, ids = np.random.default_rng(seed), CFG.tokens
    params = jax.tree.map(np.array, small.weights(CFG, seed, scale=0.25))
    codes = slice(ids.depth_first, ids.depth_first + ids.num_depths)
    table = params["llm"]["embedding"]["table"]
    table[codes] = table[codes.start] + rng.choice([0.001, 0.03, 0.3, 1.0, 30.0]) * table[codes]
    real = int(rng.integers(8, PROMPT + 1))
    tokens = np.full((1, PROMPT), ids.pad, np.int32)
    tokens[0, PROMPT - real :] = [1, 96, 98, 97, *rng.integers(60, 95, real - 5), ids.depth_output]
    valid = (np.arange(PROMPT) >= PROMPT - real)[None]
    crops = rng.integers(0, 256, (1, 1, 28, 28, 3)).astype(np.uint8)
    inputs = molmoact2.Inputs(tokens, valid, crops, images.pooling_indices(2, 2)[None])
    draft = rng.integers(0, ids.num_depths, (1, CELLS)).astype(np.int32)
    return Case(params, inputs, draft, mask(rng)[None])


def mask(rng):
    """Changed cells: none, all, scattered ones, or runs as a moving thing leaves them."""
    kind = rng.integers(5)
    if kind < 2:
        return np.full(CELLS, bool(kind))
    if kind == 2:
        return rng.random(CELLS) < rng.choice([0.05, 0.2, 0.6])
    edges = np.cumsum(rng.integers(1, 9, CELLS))
    return np.searchsorted(edges, np.arange(CELLS), side="right") % 2 == kind % 2


def plain(params, inputs, draft, changed):
    """Decodes as released: token by token, the cached code where nothing changed.

    Returns the prefix, codes i32[B, C], the gap between the two largest logits over the largest f32[B, C], and whether
    the end of the span is the most likely token behind it.
    """
    ids, start = CFG.tokens.depth, inputs.tokens.shape[1]
    prefix, _ = molmoact2.prefill(CFG, params, inputs, room=SPAN, read=1)
    rows, yes = inputs.tokens.shape[0], jnp.ones((inputs.tokens.shape[0], 1), bool)
    feed = lambda prefix, tokens, slot: decode.feed(CFG, params, prefix, tokens[:, None], yes, start=slot)  # noqa: E731
    prefix = feed(prefix, jnp.full(rows, ids.start), start)

    def cell(prefix, j):
        logits = llm.logits(CFG.llm, params["llm"], prefix.last[:, None])[:, 0, ids.first : ids.first + ids.num_codes]
        best = jax.lax.top_k(logits, 2)[0]
        code = jnp.where(changed[:, j], logits.argmax(axis=-1), draft[:, j]).astype(jnp.int32)
        return feed(prefix, code + ids.first, start + 1 + j), (code, (best[:, 0] - best[:, 1]) / jnp.abs(best[:, 0]))

    prefix, (codes, gaps) = jax.lax.scan(cell, prefix, jnp.arange(CELLS))
    ended = llm.logits(CFG.llm, params["llm"], prefix.last[:, None])[:, 0].argmax(axis=-1) == ids.end
    return feed(prefix, jnp.full(rows, ids.end), start + 1 + CELLS), codes.T, gaps.T, ended


plain = jax.jit(plain)


@functools.partial(jax.jit, static_argnums=0)
def scheduled(widths, params, inputs, draft, changed):
    return decode.depth_codes(CFG, params, inputs, draft, changed, widths=widths)


@jax.jit
def at_once(params, inputs, codes):
    """Prefills prompt and span together."""
    span = decode.span_tokens(CFG, codes)
    tokens = jnp.concatenate([inputs.tokens, span], axis=1)
    valid = jnp.concatenate([inputs.valid, jnp.ones(span.shape, bool)], axis=1)
    return molmoact2.prefill(CFG, params, inputs._replace(tokens=tokens, valid=valid), read=1)[0]


def seen(prefix, inputs, row=0):
    """Returns what the expert and the next token read of a row: keys and values behind the padding, and `last`."""
    start = inputs.valid[0].argmax()
    return jax.tree.map(lambda a: a[:, row, start:], prefix.kv), prefix.last[row]


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * float(np.abs(y).max()))


def check(one):
    """Asserts that every schedule decodes a case plainly; returns near ties, changed cells, and passes."""
    inputs, draft, changed = one.inputs, one.draft, one.changed
    prefix, codes, gaps, ended = jax.device_get(plain(one.params, inputs, draft, changed))
    near = changed[0] & (gaps[0] <= TIE)
    certain = near.argmax() if near.any() else CELLS  # what follows a tie may differ with it
    whole = at_once(one.params, inputs, codes)
    for widths in WIDTHS:
        ours, found = jax.device_get(scheduled(widths, one.params, inputs, draft, changed))
        np.testing.assert_array_equal(found.codes[0, :certain], codes[0, :certain])
        np.testing.assert_array_equal(found.codes[~changed], draft[~changed])
        assert 1 <= found.passes <= changed.sum() + 1
        if certain == CELLS:
            assert found.ended == ended
            close(seen(ours, inputs), seen(whole, inputs))
            close(seen(ours, inputs), seen(prefix, inputs))
    return int(near.sum()), int(changed.sum()), int(found.passes)


def survey(seeds):
    """Checks many cases; returns how many needed few, some, and nearly as many passes as cells changed."""
    ties, kinds = 0, collections.Counter()
    for seed in seeds:
        near, cells, passes = check(case(seed))
        ties += near
        if cells > 4:
            kinds["few" if passes <= 4 else "most" if passes > 0.8 * cells else "some"] += 1
    print(f"{len(seeds)} cases: {ties} near ties; passes {dict(kinds)}")
    return kinds


def test_schedules_of_all_widths_give_the_codes_keys_and_values_of_decoding_one_by_one():
    kinds = survey(range(24))
    assert min(kinds[name] for name in ("few", "some", "most")) > 0  # codes that depend weakly and strongly


@pytest.mark.slow
def test_three_hundred_checkpoints_caches_and_masks_decode_as_one_by_one():
    survey(range(1000, 1300))


@pytest.mark.parametrize("widths", [WIDTHS[0], WIDTHS[2]], ids=str)
def test_a_batch_of_robots_with_a_cache_each_decodes_as_one_by_one(widths):
    params = case(3).params
    several = [case(seed) for seed in (4, 13, 22, 31)]
    stacked = [jax.tree.map(lambda *a: np.concatenate(a), *(getattr(one, name) for one in several))
               for name in ("inputs", "draft", "changed")]  # fmt: skip
    together, found = scheduled(widths, params, *stacked)
    for row, one in enumerate(several):
        alone, expected = scheduled(widths, params, one.inputs, one.draft, one.changed)
        np.testing.assert_array_equal(found.codes[row], expected.codes[0])
        assert found.ended[row] == expected.ended[0]
        close(seen(together, one.inputs, row), seen(alone, one.inputs))


def test_nothing_changed_takes_one_pass_and_keeps_the_codes():
    one = case(0)
    _, found = scheduled(WIDTHS[2], one.params, one.inputs, one.draft, np.zeros((1, CELLS), bool))
    np.testing.assert_array_equal(found.codes, one.draft)
    assert found.passes == 1


def test_the_draft_of_changed_cells_decides_nothing():
    one, other = case(7), case(8)
    every = np.ones((1, CELLS), bool)
    results = [
        scheduled(WIDTHS[2], one.params, one.inputs, draft, every)[1].codes for draft in (one.draft, other.draft)
    ]
    np.testing.assert_array_equal(*results)


@functools.partial(jax.jit, static_argnums=2)
def freely(params, inputs, stop):
    prefix, _ = molmoact2.prefill(CFG, params, inputs, room=12, read=1)
    return decode.greedy(CFG, params, prefix, PROMPT, stop=stop, limit=12)[1]


def test_greedy_decoding_stops_at_the_end_and_pads_behind_it():
    one = case(5)
    free = freely(one.params, one.inputs, -1)
    assert not free.ended[0]
    assert free.num_tokens[0] == 12
    stop = int(free.tokens[0, 5])
    first = int(np.argmax(free.tokens[0] == stop)) + 1
    cut = freely(one.params, one.inputs, stop)
    np.testing.assert_array_equal(cut.tokens[0], np.where(np.arange(12) < first, free.tokens[0], CFG.tokens.pad))
    assert cut.ended[0]
    assert cut.num_tokens[0] == first
