import dataclasses
import json

import pytest

from molmoact2_jax import config
from molmoact2_jax.checkpoint import config_json, config_write
from molmoact2_jax.config import ProcessorConfig


def released(name="tiny"):
    return config_write.to_released(config.preset(name))


def put(raw, path, value):
    *parents, leaf = path.split(".")
    node = raw
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return raw


@pytest.mark.parametrize("name", ["tiny", "bench", "4b"])
def test_writing_and_reading_a_configuration_is_the_identity(name):
    cfg = config.preset(name)
    assert config_json.from_released(json.loads(json.dumps(config_write.to_released(cfg)))) == cfg


def test_the_tiny_preset_is_the_golden_configuration(golden):
    assert config_json.load(golden / "tiny") == config.preset("tiny")


@pytest.mark.parametrize("archive", ["tiny", "tiny_think", "tiny_think_random"])
def test_golden_configurations_survive_a_round_trip(golden, archive):
    cfg = config_json.load(golden / archive)
    assert config_json.from_released(config_write.to_released(cfg)) == cfg


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("adapter_config.pooling_attention_mask", False, lambda c: c.connector.pooling_mask is False),
        ("action_expert_config.causal_attn", True, lambda c: c.expert.causal),
        ("action_expert_config.qk_norm", False, lambda c: not c.expert.qk_norm),
        ("action_expert_config.rope", False, lambda c: not c.expert.rope),
        ("action_expert_config.context_layer_norm", False, lambda c: not c.expert.context_norm),
        ("action_expert_depth_gate", True, lambda c: c.gate == "single"),
        ("text_config.qk_norm_type", "olmo", lambda c: c.llm.qk_norm == "olmo"),
        ("text_config.use_qk_norm", False, lambda c: c.llm.qk_norm is None),
        ("text_config.qkv_bias", True, lambda c: c.llm.qkv_bias),
        ("text_config.norm_after", True, lambda c: c.llm.norm_after),
        ("text_config.rope_theta", 1e4, lambda c: c.llm.rope_base == 1e4),
        ("adapter_config.vit_layers", [-9, -1], lambda c: c.vit.taps == (2, 10) and c.vit.depth == 11),
        ("flow_matching_num_steps", 7, lambda c: c.flow.num_steps == 7),
        ("add_action_expert", False, lambda c: c.expert is None),
    ],
)
def test_fields_that_change_the_network_are_read(path, value, field):
    assert field(config_json.from_released(put(released(), path, value)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("text_config.rope_parameters", {"rope_type": "linear", "factor": 2.0}),
        ("text_config.tie_word_embeddings", True),
        ("text_config.hidden_act", "gelu"),
        ("text_config.qk_norm_type", "other"),
        ("vit_config.hidden_act", "relu"),
        ("vit_config.num_key_value_heads", 1),
        ("adapter_config.num_key_value_heads", 1),
        ("adapter_config.attn_implementation", "eager"),
        ("state_format", "continuous"),
        ("n_obs_steps", 2),
        ("action_expert_config.num_layers", 5),
    ],
)
def test_a_value_that_is_not_computed_is_refused_by_name(path, value):
    with pytest.raises(ValueError, match=path.replace(".", r"\.") + r".*expected"):
        config_json.from_released(put(released(), path, value))


def test_refused_values_are_listed_together():
    raw = put(put(released(), "state_format", "continuous"), "text_config.hidden_act", "gelu")
    with pytest.raises(ValueError, match=r"state_format.*text_config\.hidden_act"):
        config_json.from_released(raw)


def test_the_plain_rotary_base_wins_over_the_nested_one():
    raw = put(released(), "text_config.rope_parameters", {"rope_type": "default", "rope_theta": 3.0})
    assert config_json.from_released(raw).llm.rope_base == 5e6
    del raw["text_config"]["rope_theta"]
    assert config_json.from_released(raw).llm.rope_base == 3.0


def test_the_configuration_of_another_model_is_refused_by_what_it_lacks(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": 64}))
    with pytest.raises(ValueError, match=r"no text_config, adapter_config, text_config\.hidden_size"):
        config_json.load(tmp_path)


def test_missing_token_ids_are_named():
    raw = released()
    del raw["image_patch_id"]
    with pytest.raises(ValueError, match="no image_patch_id, expected the ids of the tokenizer"):
        config_json.from_released(raw)


def test_end_tokens_may_stand_in_the_generation_configuration(tmp_path):
    raw = released()
    ends = {name: raw.pop(name) for name in config_json.ENDS}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="no bos_token_id, eos_token_id, pad_token_id"):
        config_json.load(tmp_path)
    ends["eos_token_id"] = [ends["eos_token_id"], 3]
    (tmp_path / "generation_config.json").write_text(json.dumps(ends))
    assert config_json.load(tmp_path) == config.preset("tiny")


def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        config_json.load(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": ')
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        config_json.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: list, expected an object"):
        config_json.load(tmp_path)


def test_the_processor_is_read_or_follows_the_encoder(golden, tmp_path):
    vit = config.preset("tiny").vit
    read = config_json.load_processor(golden / "tiny", vit)
    assert (read.image_size, read.max_crops, read.single_crop_col_tokens) == (70, 4, False)
    assert config_json.load_processor(tmp_path, vit) == ProcessorConfig(image_size=70)


def test_any_expert_width_is_written(tmp_path):
    cfg = config.preset("tiny")
    odd = dataclasses.replace(cfg, expert=dataclasses.replace(cfg.expert, mlp_width=100))
    assert config_json.from_released(config_write.to_released(odd)).expert.mlp_width == 100
