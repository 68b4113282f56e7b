"""`config.json` and `processor_config.json` of the released format, read and written."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from molmoact2_jax.config import (
    ConnectorConfig,
    ExpertConfig,
    FlowConfig,
    LLMConfig,
    ModelConfig,
    ProcessorConfig,
    TokenIds,
    ViTConfig,
)

Json = Mapping[str, Any]

# ours -> released, all of them optional integers
TOKENS = dict(
    bos="bos_token_id", eos="eos_token_id", pad="pad_token_id", image_start="image_start_token_id",
    image_end="image_end_token_id", image_patch="image_patch_id", image_col="image_col_id",
    low_res_image_start="low_res_image_start_token_id", image_low="image_low_res_id",
    frame_start="frame_start_token_id", frame_end="frame_end_token_id", action_output="action_output_token_id",
    action_start="action_start_token_id", action_end="action_end_token_id", action_first="action_token_start_id",
    depth_output="depth_output_token_id", depth_start="depth_start_token_id", depth_end="depth_end_token_id",
    depth_first="depth_token_start_id", state_start="state_start_token_id", state_end="state_end_token_id",
    state_first="state_token_start_id",
)  # fmt: skip
COUNTS = dict(num_actions="num_action_tokens", num_depths="num_depth_tokens", num_states="num_state_tokens")
FLOW = dict(
    num_steps="flow_matching_num_steps", cutoff="flow_matching_cutoff", time_offset="flow_matching_time_offset",
    time_scale="flow_matching_time_scale", beta_alpha="flow_matching_beta_alpha",
    beta_beta="flow_matching_beta_beta",
)  # fmt: skip

# A field that would change the network in a way we do not compute must have its released value.
FIXED = {
    "text_config.rope_scaling": None,
    "text_config.rope_scaling_layers": None,
    "text_config.tie_word_embeddings": False,
    "tie_word_embeddings": False,
    "state_format": "discrete",
    "n_obs_steps": 1,
    "vit_config.float32_attention": True,
    "adapter_config.float32_attention": True,
    "vit_config.attn_implementation": "sdpa",
    "adapter_config.attn_implementation": "sdpa",
}


def load(directory: str | pathlib.Path) -> ModelConfig:
    """Reads the model's configuration from a checkpoint directory.

    Raises:
      FileNotFoundError: no `config.json`.
      ValueError: a field whose value we do not compute.
    """
    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a checkpoint directory in the released format.")
    return from_released(json.loads(path.read_text()), str(path))


def from_released(raw: Json, where: str = "config.json") -> ModelConfig:
    """Translates a released (or native transformers) configuration. See `load` for errors."""
    _refuse(raw, where)
    vit = _vit(raw.get("vit_config") or raw["vision_config"])
    text, adapter = raw["text_config"], raw["adapter_config"]
    llm = _llm(text, where)
    connector = _connector(adapter, vit, raw)
    gate = raw.get("action_expert_depth_gate", False)
    return ModelConfig(
        vit=_with_taps(vit, adapter, raw),
        connector=connector,
        llm=llm,
        expert=_expert(raw, llm, where) if raw.get("add_action_expert", False) else None,
        tokens=_tokens(raw),
        flow=FlowConfig(**{ours: raw[name] for ours, name in FLOW.items() if name in raw}),
        gate=None if not gate else "per_layer" if raw.get("action_expert_depth_gate_per_layer") else "single",
        gate_bias=raw.get("action_expert_depth_gate_init_bias", -4.0),
        depth_reasoning=raw.get("enable_depth_reasoning", False),
        num_depth_codes=raw.get("num_depth_codes", 100),
        action_mode=raw.get("action_mode", "both"),
        max_horizon=raw.get("max_action_horizon", 30),
        mask_action_dims=raw.get("mask_action_dim_padding", True),
        setup_tokens=raw.get("add_setup_tokens", True),
        control_tokens=raw.get("add_control_tokens", True),
        norm_stats_filename=raw.get("norm_stats_filename") or "norm_stats.json",
    )


def _refuse(raw: Json, where: str) -> None:
    wrong = []
    for path, expected in FIXED.items():
        *parents, leaf = path.split(".")
        node: Any = raw
        for name in parents:
            node = node.get(name) or {}
        value = node.get(leaf, expected)
        if value != expected and not (expected is None and (value or {}).get("rope_type") == "default"):
            wrong.append(f"{path} is {value!r}, expected {expected!r}")
    for part in ("text_config", "action_expert_config"):
        act = (raw.get(part) or {}).get("hidden_act", "silu")
        if act != "silu":
            wrong.append(f"{part}.hidden_act is {act!r}, expected 'silu'")
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}. This library does not compute such a model.")


def _vit(c: Json) -> dict[str, Any]:
    size = c.get("image_default_input_size", (378, 378))
    heads = c.get("num_attention_heads", 16)
    if c.get("num_key_value_heads", heads) != heads:
        raise ValueError(f"vit_config.num_key_value_heads is {c['num_key_value_heads']}, expected {heads}.")
    return dict(
        width=c["hidden_size"], mlp_width=c["intermediate_size"], declared_depth=c["num_hidden_layers"],
        num_heads=heads, head_dim=c["head_dim"], image_size=size[0] if isinstance(size, (list, tuple)) else size,
        patch_size=c.get("image_patch_size", 14), num_positions=c.get("image_num_pos", 729),
        norm_eps=c.get("layer_norm_eps", 1e-6), activation=c.get("hidden_act", "gelu_pytorch_tanh"),
    )  # fmt: skip


def _with_taps(vit: dict[str, Any], adapter: Json, raw: Json) -> ViTConfig:
    declared = vit["declared_depth"]
    native_extra = 2 if "vision_config" in raw and "vit_config" not in raw else 0  # native files count stored layers
    declared += native_extra
    taps = tuple(i % declared for i in adapter["vit_layers"])
    return ViTConfig(**{**vit, "declared_depth": declared}, taps=taps, depth=max(taps) + 1)


def _connector(c: Json, vit: dict[str, Any], raw: Json) -> ConnectorConfig:
    return ConnectorConfig(
        width=c["hidden_size"], feature_width=vit["width"] * len(c["vit_layers"]), mlp_width=c["intermediate_size"],
        out_width=c["text_hidden_size"], num_heads=c["num_attention_heads"], head_dim=c["head_dim"],
        pooling_mask=c.get("pooling_attention_mask", "vision_config" in raw), activation=c.get("hidden_act", "silu"),
    )  # fmt: skip


def _llm(c: Json, where: str) -> LLMConfig:
    kind = (c.get("qk_norm_type") or "olmo") if c.get("use_qk_norm", False) else None
    if kind not in (None, "qwen3", "olmo"):
        raise ValueError(f"{where}: text_config.qk_norm_type is {kind!r}, expected 'qwen3' or 'olmo'.")
    rotary = {"rope_theta": 1e6, **c, **(c.get("rope_parameters") or {})}
    return LLMConfig(
        width=c["hidden_size"], depth=c["num_hidden_layers"], num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"] or c["num_attention_heads"], head_dim=c["head_dim"],
        mlp_width=c["intermediate_size"], vocab_size=c["vocab_size"],
        extra_vocab_size=c.get("additional_vocab_size") or 128, rope_base=rotary["rope_theta"],
        norm_eps=c.get("layer_norm_eps", 1e-6), qk_norm=kind, qkv_bias=c.get("qkv_bias", False),
        norm_after=c.get("norm_after", False), max_positions=c.get("max_position_embeddings", 36864),
    )  # fmt: skip


def _expert(raw: Json, llm: LLMConfig, where: str) -> ExpertConfig:
    c = raw["action_expert_config"]
    if c["num_layers"] != llm.depth:
        raise ValueError(f"{where}: action_expert_config.num_layers is {c['num_layers']}, expected {llm.depth}.")
    if c["hidden_size"] % c["num_heads"]:
        raise ValueError(f"{where}: action_expert_config.hidden_size must divide by num_heads {c['num_heads']}.")
    ratio, multiple = c.get("mlp_ratio", 8 / 3), c.get("ffn_multiple_of", 256)
    return ExpertConfig(
        width=c["hidden_size"], depth=c["num_layers"], num_heads=c["num_heads"],
        mlp_width=math.ceil(int(c["hidden_size"] * ratio) / multiple) * multiple, context_width=llm.kv_width,
        context_heads=llm.num_kv_heads, time_width=c.get("timestep_embed_dim", 256),
        action_dim=raw.get("max_action_dim", 32), context_norm=c.get("context_layer_norm", True),
        qk_norm=c.get("qk_norm", True), qk_norm_eps=c.get("qk_norm_eps", 1e-6), rope=c.get("rope", True),
        causal=c.get("causal_attn", False), mlp_ratio=ratio, mlp_multiple=multiple,
    )  # fmt: skip


def _tokens(raw: Json) -> TokenIds:
    ids = {ours: raw.get(name) for ours, name in TOKENS.items()}
    ids["bos"] = ids["eos"] if ids["bos"] is None else ids["bos"]
    return TokenIds(**ids, **{ours: raw.get(name) or 0 for ours, name in COUNTS.items()})  # type: ignore[arg-type]


def to_released(cfg: ModelConfig) -> dict[str, Any]:
    """Translates back: `from_released(to_released(cfg)) == cfg` for every model that the released classes can run.

    Raises:
      ValueError: a conditioning that the released classes do not have.
    """
    if cfg.expert and cfg.expert.conditioning != "kv":
        raise ValueError(
            f"to_released: conditioning is {cfg.expert.conditioning!r}, expected 'kv': the released classes "
            "have no other. Keep such a model as a run of ours."
        )
    head = dict(architectures=["MolmoAct2ForConditionalGeneration"], model_type="molmoact2", dtype="float32")
    ids = {name: getattr(cfg.tokens, ours) for ours, name in {**TOKENS, **COUNTS}.items()}
    flow = {name: getattr(cfg.flow, ours) for ours, name in FLOW.items()}
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
            attn_implementation="sdpa",
        ),
        adapter_config=dict(
            hidden_size=adapter.width, intermediate_size=adapter.mlp_width, text_hidden_size=adapter.out_width,
            num_attention_heads=adapter.num_heads, num_key_value_heads=adapter.num_heads, head_dim=adapter.head_dim,
            vit_layers=[t - vit.declared_depth for t in vit.taps], pooling_attention_mask=adapter.pooling_mask,
            hidden_act=adapter.activation, float32_attention=True, attn_implementation="sdpa",
        ),
        text_config=dict(
            hidden_size=llm.width, intermediate_size=llm.mlp_width, num_hidden_layers=llm.depth,
            num_attention_heads=llm.num_heads, num_key_value_heads=llm.num_kv_heads, head_dim=llm.head_dim,
            vocab_size=llm.vocab_size, additional_vocab_size=llm.extra_vocab_size, rope_theta=llm.rope_base,
            layer_norm_eps=llm.norm_eps, use_qk_norm=llm.qk_norm is not None, qk_norm_type=llm.qk_norm or "qwen3",
            qkv_bias=llm.qkv_bias, norm_after=llm.norm_after, hidden_act="silu", tie_word_embeddings=False,
            max_position_embeddings=llm.max_positions, attn_implementation="sdpa",
        ),
    )  # fmt: skip
    if expert:
        towers["action_expert_config"] = dict(
            hidden_size=expert.width, num_layers=expert.depth, num_heads=expert.num_heads, mlp_ratio=expert.mlp_ratio,
            ffn_multiple_of=expert.mlp_multiple, timestep_embed_dim=expert.time_width, rope=expert.rope,
            context_layer_norm=expert.context_norm, qk_norm=expert.qk_norm, qk_norm_eps=expert.qk_norm_eps,
            causal_attn=expert.causal, dropout=0.0, attn_dropout=0.0,
        )  # fmt: skip
    return towers


def load_processor(directory: str | pathlib.Path, vit: ViTConfig) -> ProcessorConfig:
    """Reads `processor_config.json`, or takes the released values with the encoder's sizes where there is none."""
    path = pathlib.Path(directory) / "processor_config.json"
    if not path.is_file():
        return ProcessorConfig(image_size=vit.image_size, patch_size=vit.patch_size)
    raw = json.loads(path.read_text())
    image, video = raw.get("image_processor", {}), raw.get("video_processor", {})
    single = raw.get("use_single_crop_col_tokens")
    columns = raw.get("image_use_col_tokens", True)
    return ProcessorConfig(
        image_size=image.get("size", {}).get("height", vit.image_size), patch_size=image.get("patch_size", 14),
        pooling=image.get("pooling_size", [2, 2])[0], crop_mode=image.get("crop_mode", "resize"),
        max_crops=image.get("max_crops", 8), overlap_margins=tuple(image.get("overlap_margins", (4, 4))),
        image_col_tokens=columns, single_crop_col_tokens=columns if single is None else single,
        video_pooling=video.get("pooling_size", [3, 3])[0], video_frames=video.get("num_frames", 8),
        video_fps=video.get("max_fps", 2.0), video_col_tokens=raw.get("video_use_col_tokens", False),
        frame_tokens=raw.get("use_frame_special_tokens", True),
    )  # fmt: skip
