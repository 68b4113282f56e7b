"""The named models: sizes, and the token ids that follow from the sizes of a vocabulary."""

from __future__ import annotations

from typing import Any

from molmoact2_jax import config


def preset(name: str) -> config.ModelConfig:
    """Returns one of the named models: "tiny" (tests), "bench" (80 M parameters), "4b" (the released sizes).

    Raises:
      ValueError: another name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r}, expected one of {sorted(PRESETS)}.{config.near(name, PRESETS)}")
    size = PRESETS[name]
    vit, llm, expert = (dict(size[part]) for part in ("vit", "llm", "expert"))
    declared = vit.pop("declared_depth")
    taps = (declared - 3, declared - 9)
    patches = (vit["image_size"] // 14) ** 2
    encoder = config.ViTConfig(**vit, depth=taps[0] + 1, taps=taps, declared_depth=declared, num_positions=patches)
    decoder = config.LLMConfig(**llm)
    return config.ModelConfig(
        vit=encoder,
        connector=config.ConnectorConfig(
            width=vit["width"],
            feature_width=2 * vit["width"],
            mlp_width=llm["mlp_width"],
            out_width=llm["width"],
            num_heads=vit["num_heads"],
            head_dim=vit["head_dim"],
        ),
        llm=decoder,
        expert=config.ExpertConfig(
            **expert, depth=decoder.depth, context_width=decoder.kv_width, context_heads=decoder.num_kv_heads
        ),
        tokens=_token_ids(size["base"], decoder.vocab_size, size["depths"]),
        gate="per_layer" if name == "bench" else None,
        depth_reasoning=name == "bench",
    )


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        vit=dict(width=48, mlp_width=96, declared_depth=11, num_heads=3, head_dim=16, image_size=70),
        llm=dict(width=64, depth=3, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=96, vocab_size=3584,
                 max_positions=4096),
        expert=dict(width=48, num_heads=4, mlp_width=192, time_width=32, mlp_multiple=16),
        base=1259, depths=0,
    ),
    "bench": dict(
        vit=dict(width=288, mlp_width=1076, declared_depth=11, num_heads=4, head_dim=72, image_size=210),
        llm=dict(width=640, depth=8, num_heads=16, num_kv_heads=4, head_dim=64, mlp_width=2432, vocab_size=7552,
                 max_positions=4096),
        expert=dict(width=192, num_heads=4, mlp_width=768),
        base=5003, depths=128,
    ),
    "4b": dict(
        vit=dict(width=1152, mlp_width=4304, declared_depth=27, num_heads=16, head_dim=72, image_size=378),
        llm=dict(width=2560, depth=36, num_heads=32, num_kv_heads=8, head_dim=128, mlp_width=9728,
                 vocab_size=154_624),
        expert=dict(width=768, num_heads=8, mlp_width=3072),
        base=151_669, depths=128,
    ),
}  # fmt: skip


def _token_ids(base: int, vocab: int, depths: int) -> config.TokenIds:
    """Ids in the released order: special tokens end the base vocabulary, families follow, images lie behind `vocab`."""
    ends = base if base < 10_000 else 151_646  # a truncated vocabulary puts its three special tokens last
    action = base + 6 + 256
    depth = action + 3 + 2048
    has = (lambda i: i) if depths else (lambda i: None)
    return config.TokenIds(
        bos=ends - 1, eos=ends - 1, pad=ends - 3, image_start=vocab, image_end=vocab + 1, image_patch=vocab + 2,
        image_col=vocab + 3, low_res_image_start=vocab + 4, image_low=vocab + 6, frame_start=vocab + 7,
        frame_end=vocab + 8, state_start=base + 4, state_end=base + 5, state_first=base + 6, num_states=256,
        action_output=action, action_start=action + 1, action_end=action + 2, action_first=action + 3,
        num_actions=2048, depth_output=has(depth), depth_start=has(depth + 1), depth_end=has(depth + 2),
        depth_first=has(depth + 3), num_depths=depths,
    )  # fmt: skip
