import dataclasses

import numpy as np
import pytest

from molmoact2_jax.models import masks
from tests.train import small

CFG = small.model()
IDS = CFG.tokens
EOS, START, END = IDS.eos, IDS.action_start, IDS.action_end


def row(*tokens):
    return np.asarray(tokens, np.int32)[None]


def test_prompts_are_causal_over_valid_tokens_and_pictures_see_each_other_both_ways():
    tokens = row(0, 1, 96, 98, 97, 60, 96, 98, 97, 61)
    valid = np.arange(10)[None] >= 1
    mask = np.asarray(masks.prompt(tokens, valid, CFG))[0]
    shown = np.isin(tokens[0], [96, 97, 98])
    for i in range(10):
        for j in range(10):
            assert mask[i, j] == (valid[0, j] and (j <= i or (shown[i] and shown[j])))


def test_the_switch_makes_pictures_causal():
    tokens, valid = row(1, 96, 98, 97, 60), np.ones((1, 5), bool)
    causal = dataclasses.replace(CFG, bidirectional_images=False)
    np.testing.assert_array_equal(masks.prompt(tokens, valid, causal)[0], np.tril(np.ones((5, 5), bool)))
    assert masks.prompt(tokens, valid, CFG)[0, 1, 3]


def test_packed_tokens_see_their_example_and_the_prefix_it_shares():
    shared, first, second, other, pad = 10_000, 1, 2, 100_001, -1
    segments = np.asarray([[first, first, second, second, shared, other, other, pad]])
    mask = np.asarray(masks.packed(segments))[0]
    for i in range(8):
        for j in range(8):
            seen = j <= i and segments[0, j] >= segments[0, i] and segments[0, j] >= 0
            assert mask[i, j] == seen


def test_packed_pictures_see_each_other_inside_their_example_only():
    segments = np.asarray([[0, 0, 0, 100_000, 100_000]])
    family = np.asarray([[True, False, True, True, True]])
    mask = np.asarray(masks.packed(segments, family))[0]
    assert mask[0, 2]
    assert mask[3, 4]
    assert not mask[0, 3]
    assert not mask[1, 2]


def test_padding_does_not_count_in_positions():
    valid = np.asarray([[False, False, True, True, True], [True, False, True, False, True]])
    np.testing.assert_array_equal(masks.positions(valid), [[0, 0, 0, 1, 2], [0, 0, 1, 1, 2]])


@pytest.mark.parametrize(
    ("tokens", "visible"),
    [
        ([EOS, 60, EOS, 61], [0, 1, 0, 1]),
        ([60, START, 14, END, 61], [1, 0, 0, 0, 1]),
        ([60, START, 14, 15, 61], [1, 0, 0, 0, 0]),
        ([60, END, 61, START, 14], [1, 1, 1, 0, 0]),
        ([START, 14, START, END, 61], [0, 0, 0, 0, 1]),
    ],
)
def test_the_expert_reads_neither_ends_nor_action_spans(tokens, visible):
    valid = np.ones((1, len(tokens)), bool)
    np.testing.assert_array_equal(masks.context(row(*tokens), valid, CFG), [np.asarray(visible, bool)])
    plain = dataclasses.replace(CFG, action_mode="continuous")
    np.testing.assert_array_equal(masks.context(row(*tokens), valid, plain), valid)


def test_a_new_example_closes_an_open_action_span():
    tokens, segments = row(60, START, 14, 61, 62), np.asarray([[0, 0, 0, 100_000, 100_000]])
    visible = masks.context(tokens, segments >= 0, CFG, segments)
    np.testing.assert_array_equal(visible, [[True, False, False, True, True]])


def test_padding_is_never_visible():
    tokens, valid = row(0, 0, 60, 61), np.asarray([[False, False, True, True]])
    np.testing.assert_array_equal(masks.context(tokens, valid, CFG), valid)


def test_depth_tokens_are_trigger_start_codes_and_end_where_visible():
    ids = IDS.depth
    tokens = row(60, ids.output, IDS.action_output, ids.start, ids.first, ids.first + 15, ids.first + 16, ids.end)
    visible = np.asarray([[True] * 7 + [False]])
    expected = [[False, True, False, True, True, True, False, False]]
    np.testing.assert_array_equal(masks.depth_span(tokens, visible, IDS), expected)
    without = dataclasses.replace(IDS, depth_output=None, depth_start=None, depth_end=None, depth_first=None)
    assert not masks.depth_span(tokens, visible, without).any()
