"""`config.json` and `processor_config.json` of the released format, read and written."""

from __future__ import annotations

import dataclasses
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

ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # which `generation_config.json` may hold instead

# A field that would change the network in a way we do not compute must have its released value.
FIXED = {
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


ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "vit_config": ("gelu_pytorch_tanh", "gelu", "quick_gelu"),
    "adapter_config": ("silu", "gelu", "gelu_pytorch_tanh"),
    "text_config": ("silu",),
    "action_expert_config": ("silu",),
}

# What must be there: without these there is no model to build. Natives call the encoder's part `vision_config`.
REQUIRED = {
    "": ("text_config", "adapter_config"),
    "text_config": (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "vocab_size",
    ),
    "adapter_config": (
        "hidden_size", "intermediate_size", "text_hidden_size", "num_attention_heads", "head_dim", "vit_layers",
    ),
    "vit_config": ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    "action_expert_config": ("hidden_size", "num_layers", "num_heads"),
}  # fmt: skip


def load(directory: str | pathlib.Path) -> ModelConfig:
    """Reads the model's configuration from a checkpoint directory.

    Raises:
      FileNotFoundError: no `config.json`.
      ValueError: not JSON, fields that are missing, or whose value we do not compute.
    """
    directory = pathlib.Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a checkpoint directory in the released format.")
    generation = directory / "generation_config.json"
    ends = _read(generation) if generation.is_file() else {}
    found = _read(path)
    missing = {name: ends[name] for name in ENDS if found.get(name) is None and name in ends}
    return from_released({**found, **missing}, str(path))


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}), expected a configuration. Copy it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {type(found).__name__}, expected an object. Copy it again.")
    return found


def from_released(raw: Json, where: str = "config.json") -> ModelConfig:
    """Translates a released (or native transformers) configuration. See `load` for errors."""
    if "vit_config" not in raw and "vision_config" in raw:
        raw = {**raw, "vit_config": raw["vision_config"]}
    _require(raw, where)
    _refuse(raw, where)
    vit, text, adapter = raw["vit_config"], raw["text_config"], raw["adapter_config"]
    llm = _llm(text, where)
    gate = raw.get("action_expert_depth_gate", False)
    return ModelConfig(
        vit=_vit(vit, adapter, declared=vit["num_hidden_layers"] + (2 if "vision_config" in raw else 0)),
        connector=_connector(adapter, vit, raw),
        llm=llm,
        expert=_expert(raw, llm, where) if raw.get("add_action_expert", False) else None,
        tokens=_tokens(raw, where),
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


def _require(raw: Json, where: str) -> None:
    expected = dict(REQUIRED)
    if not raw.get("add_action_expert", False):
        del expected["action_expert_config"]
    missing = [
        f"{part}.{name}".lstrip(".")
        for part, names in expected.items()
        for name in names
        if ((raw.get(part) or {}) if part else raw).get(name) is None
    ]
    if missing:
        raise ValueError(
            f"{where}: no {', '.join(missing)}, expected the configuration of a MolmoAct2 or Molmo2 model."
        )


def _refuse(raw: Json, where: str) -> None:
    wrong = []
    for path, expected in FIXED.items():
        *parents, leaf = path.split(".")
        node: Any = raw
        for name in parents:
            node = node.get(name) or {}
        value = node.get(leaf, expected)
        if value != expected:
            wrong.append(f"{path} is {value!r}, expected {expected!r}")
    for name in ("rope_scaling", "rope_parameters"):
        rotary = raw["text_config"].get(name) or {}
        if rotary.get("rope_type", rotary.get("type", "default")) != "default":
            wrong.append(f"text_config.{name} is {rotary!r}, expected rope_type 'default'")
    for part in ("vit_config", "adapter_config"):
        heads = raw[part].get("num_attention_heads", 16)
        if raw[part].get("num_key_value_heads", heads) != heads:
            wrong.append(f"{part}.num_key_value_heads is {raw[part]['num_key_value_heads']}, expected {heads}")
    for part, allowed in ACTIVATIONS.items():
        act = (raw.get(part) or {}).get("hidden_act", allowed[0])
        if act not in allowed:
            wrong.append(f"{part}.hidden_act is {act!r}, expected one of {allowed}")
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}. This library does not compute such a model.")


def _vit(c: Json, adapter: Json, declared: int) -> ViTConfig:
    """Reads the encoder; native files count the stored layers, of which two are never computed less than `declared`."""
    size = c.get("image_default_input_size", (378, 378))
    taps = tuple(i % declared for i in adapter["vit_layers"])
    return ViTConfig(
        width=c["hidden_size"], mlp_width=c["intermediate_size"], declared_depth=declared, taps=taps,
        depth=max(taps) + 1, num_heads=c.get("num_attention_heads", 16), head_dim=c["head_dim"],
        image_size=size[0] if isinstance(size, (list, tuple)) else size, patch_size=c.get("image_patch_size", 14),
        num_positions=c.get("image_num_pos", 729), norm_eps=c.get("layer_norm_eps", 1e-6),
        activation=c.get("hidden_act", "gelu_pytorch_tanh"), init_std=c.get("initializer_range", 0.02),
    )  # fmt: skip


def _connector(c: Json, vit: Json, raw: Json) -> ConnectorConfig:
    return ConnectorConfig(
        width=c["hidden_size"], feature_width=vit["hidden_size"] * len(c["vit_layers"]),
        mlp_width=c["intermediate_size"], out_width=c["text_hidden_size"], num_heads=c["num_attention_heads"],
        head_dim=c["head_dim"], pooling_mask=c.get("pooling_attention_mask", "vision_config" in raw),
        activation=c.get("hidden_act", "silu"), init_std=c.get("initializer_range", 0.02),
    )  # fmt: skip


def _llm(c: Json, where: str) -> LLMConfig:
    kind = (c.get("qk_norm_type") or "olmo") if c.get("use_qk_norm", False) else None
    if kind not in (None, "qwen3", "olmo"):
        raise ValueError(f"{where}: text_config.qk_norm_type is {kind!r}, expected 'qwen3' or 'olmo'.")
    rotary = {"rope_theta": 1e6, **(c.get("rope_parameters") or {}), **c}  # the plain field wins, as released
    return LLMConfig(
        width=c["hidden_size"], depth=c["num_hidden_layers"], num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"] or c["num_attention_heads"], head_dim=c["head_dim"],
        mlp_width=c["intermediate_size"], vocab_size=c["vocab_size"],
        extra_vocab_size=c.get("additional_vocab_size") or 128, rope_base=rotary["rope_theta"],
        norm_eps=c.get("layer_norm_eps", 1e-6), qk_norm=kind, qkv_bias=c.get("qkv_bias", False),
        norm_after=c.get("norm_after", False), max_positions=c.get("max_position_embeddings", 36864),
        init_std=c.get("initializer_range", 0.02),
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
        mlp_width=expert_mlp_width(c["hidden_size"], ratio, multiple), context_width=llm.kv_width,
        context_heads=llm.num_kv_heads, time_width=c.get("timestep_embed_dim", 256),
        action_dim=raw.get("max_action_dim", 32), context_norm=c.get("context_layer_norm", True),
        qk_norm=c.get("qk_norm", True), qk_norm_eps=c.get("qk_norm_eps", 1e-6), rope=c.get("rope", True),
        causal=c.get("causal_attn", False), mlp_ratio=ratio, mlp_multiple=multiple,
    )  # fmt: skip


def expert_mlp_width(width: int, ratio: float, multiple: int) -> int:
    """Returns the hidden width of the expert's MLP, rounded up as released."""
    return math.ceil(int(width * ratio) / multiple) * multiple


def _tokens(raw: Json, where: str) -> TokenIds:
    ids: dict[str, Any] = {ours: raw.get(name, raw["text_config"].get(name)) for ours, name in TOKENS.items()}
    for name in ("bos", "eos", "pad"):
        ids[name] = ids[name][0] if isinstance(ids[name], list) else ids[name]
    ids["bos"] = ids["eos"] if ids["bos"] is None else ids["bos"]
    required = (f.name for f in dataclasses.fields(TokenIds) if f.default is dataclasses.MISSING)
    missing = [TOKENS[name] for name in required if ids[name] is None]
    if missing:
        raise ValueError(f"{where}: no {', '.join(missing)}, expected the ids of the tokenizer beside it.")
    return TokenIds(**ids, **{ours: raw.get(name) or 0 for ours, name in COUNTS.items()})


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
