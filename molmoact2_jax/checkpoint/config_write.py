"""Writes `config.json` of the released format."""

from __future__ import annotations

from typing import Any

from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.config import ExpertConfig, ModelConfig


def to_released(cfg: ModelConfig) -> dict[str, Any]:
    """Translates back: `config_json.from_released(to_released(cfg)) == cfg` for every model that the release can run.

    Raises:
      ValueError: a conditioning that the released classes do not have.
    """
    if cfg.expert and cfg.expert.conditioning != "kv":
        raise ValueError(
            f"to_released: conditioning is {cfg.expert.conditioning!r}, expected 'kv': the released classes "
            "have no other. Keep such a model as a run of ours."
        )
    head = dict(architectures=["MolmoAct2ForConditionalGeneration"], model_type="molmoact2", dtype="float32")
    ids = {name: getattr(cfg.tokens, ours) for ours, name in {**config_json.TOKENS, **config_json.COUNTS}.items()}
    flow = {name: getattr(cfg.flow, ours) for ours, name in config_json.FLOW.items()}
    return {**head, **ids, **flow, **_top(cfg), **_towers(cfg)}


def _top(cfg: ModelConfig) -> dict[str, Any]:
    return dict(
        action_mode=cfg.action_mode, add_action_expert=cfg.expert is not None, max_action_dim=cfg.action_dim,
        max_action_horizon=cfg.max_horizon, mask_action_dim_padding=cfg.mask_action_dims,
        enable_depth_reasoning=cfg.depth_reasoning, num_depth_codes=cfg.num_depth_codes,
        action_expert_depth_gate=cfg.gate is not None, action_expert_depth_gate_per_layer=cfg.gate == "per_layer",
        action_expert_depth_gate_init_bias=cfg.gate_bias, add_setup_tokens=cfg.setup_tokens,
        add_control_tokens=cfg.control_tokens, norm_stats_filename=cfg.norm_stats_filename, n_obs_steps=1,
        state_format="discrete", image_high_res_id=cfg.tokens.image_patch, tie_word_embeddings=False,
        use_frame_special_tokens=True, initializer_range=0.02,
    )  # fmt: skip


def _towers(cfg: ModelConfig) -> dict[str, Any]:
    vit, adapter, llm, expert = cfg.vit, cfg.connector, cfg.llm, cfg.expert
    towers: dict[str, Any] = dict(
        vit_config=dict(
            hidden_size=vit.width, intermediate_size=vit.mlp_width, num_hidden_layers=vit.declared_depth,
            num_attention_heads=vit.num_heads, num_key_value_heads=vit.num_heads, head_dim=vit.head_dim,
            hidden_act=vit.activation, layer_norm_eps=vit.norm_eps, image_patch_size=vit.patch_size,
            image_default_input_size=[vit.image_size] * 2, image_num_pos=vit.num_positions, float32_attention=True,
            attn_implementation="sdpa", initializer_range=vit.init_std,
        ),
        adapter_config=dict(
            hidden_size=adapter.width, intermediate_size=adapter.mlp_width, text_hidden_size=adapter.out_width,
            num_attention_heads=adapter.num_heads, num_key_value_heads=adapter.num_heads, head_dim=adapter.head_dim,
            vit_layers=[t - vit.declared_depth for t in vit.taps], pooling_attention_mask=adapter.pooling_mask,
            hidden_act=adapter.activation, float32_attention=True, attn_implementation="sdpa",
            initializer_range=adapter.init_std,
        ),
        text_config=dict(
            hidden_size=llm.width, intermediate_size=llm.mlp_width, num_hidden_layers=llm.depth,
            num_attention_heads=llm.num_heads, num_key_value_heads=llm.num_kv_heads, head_dim=llm.head_dim,
            vocab_size=llm.vocab_size, additional_vocab_size=llm.extra_vocab_size, rope_theta=llm.rope_base,
            layer_norm_eps=llm.norm_eps, use_qk_norm=llm.qk_norm is not None, qk_norm_type=llm.qk_norm or "qwen3",
            qkv_bias=llm.qkv_bias, norm_after=llm.norm_after, hidden_act="silu", tie_word_embeddings=False,
            max_position_embeddings=llm.max_positions, attn_implementation="sdpa", initializer_range=llm.init_std,
        ),
    )  # fmt: skip
    if expert:
        ratio, multiple = _mlp(expert)
        towers["action_expert_config"] = dict(
            hidden_size=expert.width, num_layers=expert.depth, num_heads=expert.num_heads, mlp_ratio=ratio,
            ffn_multiple_of=multiple, timestep_embed_dim=expert.time_width, rope=expert.rope,
            context_layer_norm=expert.context_norm, qk_norm=expert.qk_norm, qk_norm_eps=expert.qk_norm_eps,
            causal_attn=expert.causal, dropout=0.0, attn_dropout=0.0,
        )  # fmt: skip
    return towers


def _mlp(expert: ExpertConfig) -> tuple[float, int]:
    """Returns the ratio and the multiple that give the hidden width: the configuration's own, where they do."""
    if config_json.expert_mlp_width(expert.width, expert.mlp_ratio, expert.mlp_multiple) == expert.mlp_width:
        return expert.mlp_ratio, expert.mlp_multiple
    return expert.mlp_width / expert.width, expert.mlp_width
