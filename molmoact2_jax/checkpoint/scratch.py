"""The files around a small model that is trained from nothing: its sizes, tokenizer and processor.

What is written is the released format less the tensors, so that training reads it as `model.sizes` and a run of it
exports like any other.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from molmoact2_jax import config
from molmoact2_jax.checkpoint import config_json, config_write
from molmoact2_jax.data import norm_stats
from molmoact2_jax.text import prompt, vocabulary


class Tower(NamedTuple):
    """Width, layers, attention heads and hidden width of the feed-forward part of a stack of blocks."""

    width: int
    depth: int
    num_heads: int
    mlp_width: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a small model.

    Attributes:
      image_size, patch_size: pixels along a crop and along a patch; 2x2 patches are pooled into one token.
      vit, llm, expert: the towers; the expert has the decoder's depth, and every head of the decoder its own keys.
      num_states: bins of a state channel.
      time_width: of the embedding of the flow time.
      init_std: of fresh weights outside the expert. At these widths the released 0.02 hardly moves the residual
        stream, and training is slower.
    """

    image_size: int
    patch_size: int
    vit: Tower
    llm: Tower
    expert: Tower
    num_states: int = 64
    time_width: int = 64
    init_std: float = 0.06


SIZES: dict[str, Sizes] = {
    "small": Sizes(64, 8, Tower(128, 2, 4, 384), Tower(128, 3, 4, 384), Tower(96, 3, 4, 384)),
    "medium": Sizes(128, 8, Tower(384, 6, 6, 1152), Tower(512, 8, 8, 1536), Tower(384, 8, 8, 1536), 256, 256, 0.03),
}


def write(
    directory: pathlib.Path, sizes: Sizes, stats: norm_stats.NormStats, instructions: Collection[str]
) -> config.ModelConfig:
    """Writes `config.json`, the processor, the tokenizer and the statistics of a fresh model.

    Args:
      directory: where to; made if need be.
      sizes: of the model.
      stats: of the robots it will move; their horizons and words enter the configuration and the vocabulary.
      instructions: texts whose words become tokens; others are still written, byte by byte.

    Returns:
      The model, as training will read it.

    Raises:
      ValueError: statistics without a tag, or a tag without a horizon.
    """
    if not stats.tags or not instructions:
        raise ValueError(
            f"statistics of {len(stats.tags)} robots, {len(instructions)} instructions, expected at least one of each."
        )
    unknown = [name for name, tag in stats.tags.items() if not tag.horizon]
    if unknown:
        raise ValueError(f"tags {', '.join(unknown)}: no horizon, expected one. Make them with data stats --horizon.")
    fixed = dict.fromkeys(p for tag in stats.tags.values() for p in vocabulary.phrases(tag.setup, tag.control))
    tokenizer = vocabulary.build(map(prompt.normalize_task, instructions), fixed, sizes.num_states)
    ids = vocabulary.token_ids(tokenizer, sizes.num_states)
    horizon = max(tag.horizon or 0 for tag in stats.tags.values())
    cfg = model(sizes, ids, vocabulary.rows(tokenizer), horizon)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    norm_stats.save(directory / "norm_stats.json", stats)
    for name, values in {
        "tokenizer_config.json": _tokenizer(),
        "processor_config.json": _processor(sizes),
        "generation_config.json": dict(bos_token_id=ids.bos, eos_token_id=ids.eos, pad_token_id=ids.pad),
        "config.json": config_write.to_released(cfg),  # last: a directory with it is complete
    }.items():
        (directory / name).write_text(json.dumps(values, indent=2) + "\n")
    return config_json.load(directory)


def model(sizes: Sizes, ids: config.TokenIds, vocab_size: int, horizon: int) -> config.ModelConfig:
    """Returns a model for continuous actions, whose image encoder is read after its last layer."""
    vit, llm, expert = sizes.vit, sizes.llm, sizes.expert
    head_dim = llm.width // llm.num_heads
    return config.ModelConfig(
        vit=config.ViTConfig(
            **_tower(vit), taps=(vit.depth - 1,), declared_depth=vit.depth, image_size=sizes.image_size,
            patch_size=sizes.patch_size, num_positions=(sizes.image_size // sizes.patch_size) ** 2,
            init_std=sizes.init_std, head_dim=vit.width // vit.num_heads,
        ),
        connector=config.ConnectorConfig(
            width=vit.width, feature_width=vit.width, mlp_width=2 * vit.width, out_width=llm.width,
            num_heads=vit.num_heads, head_dim=vit.width // vit.num_heads, init_std=sizes.init_std,
        ),
        llm=config.LLMConfig(
            **_tower(llm), num_kv_heads=llm.num_heads, head_dim=head_dim, vocab_size=vocab_size,
            max_positions=4096, init_std=sizes.init_std,
        ),
        expert=config.ExpertConfig(
            **_tower(expert), context_width=llm.width, context_heads=llm.num_heads, time_width=sizes.time_width,
            mlp_ratio=expert.mlp_width / expert.width, mlp_multiple=16,
        ),
        tokens=ids, action_mode="continuous", max_horizon=horizon,
    )  # fmt: skip


def _tower(tower: Tower) -> dict[str, Any]:
    return tower._asdict()


def _tokenizer() -> Mapping[str, Any]:
    return dict(
        tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", bos_token="<|im_end|>", pad_token="<|endoftext|>",
        padding_side="left", model_max_length=4096, clean_up_tokenization_spaces=False, add_prefix_space=False,
    )  # fmt: skip


def _processor(sizes: Sizes) -> Mapping[str, Any]:
    """Returns the released processor's settings for one crop without column tokens, at these sizes."""
    size = dict(height=sizes.image_size, width=sizes.image_size)
    both = dict(size=size, patch_size=sizes.patch_size, pooling_size=[2, 2], resample=2,
                image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    return dict(
        processor_class="MolmoAct2Processor", image_use_col_tokens=True, use_single_crop_col_tokens=False,
        use_single_crop_start_token=True, video_use_col_tokens=False, use_frame_special_tokens=True,
        image_processor=dict(**both, image_processor_type="MolmoAct2ImageProcessor", max_crops=4,
                             overlap_margins=[1, 1], crop_mode="resize", do_convert_rgb=True),
        video_processor=dict(**both, video_processor_type="MolmoAct2VideoProcessor", num_frames=8, max_fps=2,
                             sampling_fps=2, frame_sample_mode="uniform_last_frame"),
    )  # fmt: skip
