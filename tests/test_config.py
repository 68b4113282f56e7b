import dataclasses

import pytest

from molmoact2_jax import config


def test_nested_mappings_become_dataclasses_and_lists_tuples():
    values = dict(width=8, mlp_width=16, depth=2, num_heads=2, head_dim=4, taps=[1, 0], declared_depth=3)
    made = config.build(config.ViTConfig, values)
    assert made == config.ViTConfig(8, 16, 2, 2, 4, (1, 0), 3)
    assert dataclasses.replace(made, image_size=28).grid == 2


def test_an_unknown_key_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"config\.num_step: unknown key.*Did you mean 'num_steps'"):
        config.build(config.FlowConfig, dict(num_step=3))


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match=r"llm: missing .*'depth'"):
        config.build(config.LLMConfig, dict(width=4), where="llm")


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"preset: 'benhc', expected one of .*Did you mean 'bench'"):
        config.preset("benhc")


@pytest.mark.parametrize("name", ["tiny", "bench", "4b"])
def test_the_widths_of_the_towers_fit_each_other(name):
    cfg = config.preset(name)
    assert cfg.connector.out_width == cfg.llm.width
    assert cfg.connector.feature_width == len(cfg.vit.taps) * cfg.vit.width
    assert cfg.expert.context_width == cfg.llm.kv_width
    assert cfg.expert.depth == cfg.llm.depth
    assert cfg.vit.grid**2 == cfg.vit.num_positions
    assert cfg.expert.head_dim * cfg.expert.num_heads == cfg.expert.width


def test_the_released_preset_has_the_released_ids():
    ids = config.preset("4b").tokens
    assert (ids.bos, ids.eos, ids.pad) == (151645, 151645, 151643)
    assert (ids.state_first, ids.action_output, ids.action_first) == (151675, 151931, 151934)
    assert ids.depth == (153982, 153983, 153984, 153985, 128)
    assert (ids.image_start, ids.image_patch, ids.frame_end) == (154624, 154626, 154632)


def test_a_vocabulary_without_depth_tokens_says_so():
    with pytest.raises(ValueError, match="no ids of depth tokens"):
        _ = config.preset("tiny").tokens.depth
