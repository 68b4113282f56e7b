"""Model FLOPs of a training step, from the sizes in the configuration alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from molmoact2_jax.config import ConnectorConfig, ExpertConfig, LLMConfig, ModelConfig, ViTConfig
from molmoact2_jax.nn import paths

TOWERS = ("vit", "connector", "llm", "expert")  # each reads the ones before it

# Dense bfloat16 peak of one device in FLOP/s, by the start of its `device_kind`, from the vendors' data sheets.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA RTX A6000": 155e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12,
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What one row of a batch holds, padding included: it is computed too.

    Attributes:
      tokens: positions of the decoder.
      crops: pictures.
      image_tokens: results of the connector.
      loss_tokens: positions whose logits are computed.
      chunks: action chunks.
      samples: flow samples of each chunk, K.
      horizon: steps of a chunk.
    """

    tokens: int
    crops: int
    image_tokens: int
    loss_tokens: int
    chunks: int = 0
    samples: int = 0
    horizon: int = 0


def step(cfg: ModelConfig, work: Work, rows: int, passes: Mapping[str, float] | None = None) -> dict[str, float]:
    """FLOPs of one training step, by part.

    A product of N weights with a token costs 2 N, and in training 6 N: once forward, twice backward (towards the inputs
    and towards the weights). Attention of t queries over s keys in layers of width d costs 4 t s d forward, half of it
    where it is causal. Recomputation, norms, softmax, embedding look-ups and the optimizer are not counted.

        llm     6 L (2 d n h + 2 d k h + 3 d f) T  +  6 L n h T^2  +  6 d V (loss tokens)      (n k h: heads, kv, size)
        vit     (6 L (4 d^2 + 2 d f) + 6 pixels d) P I  +  12 L d P^2 I
        expert  6 (6 L d^2 + 3 L d f) A C K + 6 (9 L d^2) C K + 6 (2 L c d) T + 12 L d A (A + T) C K

    Args:
      cfg: sizes.
      work: contents of a row.
      rows: rows of the global batch.
      passes: instead of 6, what `passes` gives where a part is frozen.

    Returns:
      FLOPs by tower and their "total".
    """
    factors = dict.fromkeys(TOWERS, 6.0) | dict(passes or {})
    forward = {
        "vit": _vit(cfg.vit, work),
        "connector": _connector(cfg.connector, work),
        "llm": _llm(cfg.llm, work),
        "expert": _expert(cfg.expert, work) if cfg.expert else 0.0,
    }
    found = {tower: factors[tower] / 2 * rows * flops for tower, flops in forward.items()}
    return found | {"total": sum(found.values())}


def _vit(cfg: ViTConfig, work: Work) -> float:
    patches = cfg.num_positions * work.crops
    inner = cfg.num_heads * cfg.head_dim
    weights = cfg.depth * (4 * cfg.width * inner + 2 * cfg.width * cfg.mlp_width) + 3 * cfg.patch_size**2 * cfg.width
    return 2 * weights * patches + 4 * cfg.depth * inner * cfg.num_positions * patches


def _connector(cfg: ConnectorConfig, work: Work) -> float:
    inner, window = cfg.num_heads * cfg.head_dim, 4
    pooling = (1 + 2 * window) * cfg.feature_width * inner + inner * cfg.width
    return 2 * (pooling + 2 * cfg.width * cfg.mlp_width + cfg.mlp_width * cfg.out_width) * work.image_tokens


def _llm(cfg: LLMConfig, work: Work) -> float:
    inner = cfg.num_heads * cfg.head_dim
    weights = cfg.depth * cfg.width * (2 * inner + 2 * cfg.kv_width + 3 * cfg.mlp_width)
    head = 2 * cfg.width * cfg.vocab_size * work.loss_tokens
    return 2 * weights * work.tokens + 2 * cfg.depth * inner * work.tokens**2 + head


def _expert(cfg: ExpertConfig, work: Work) -> float:
    draws = work.chunks * work.samples
    body = cfg.depth * (6 * cfg.width**2 + 3 * cfg.width * cfg.mlp_width) + 2 * cfg.action_dim * cfg.width
    per_draw = 9 * cfg.depth * cfg.width**2 + 3 * cfg.width**2 + cfg.time_width * cfg.width
    context = 2 * cfg.depth * cfg.context_width * (cfg.head_dim if cfg.conditioning == "kv_heads" else cfg.width)
    attention = 4 * cfg.depth * cfg.width * work.horizon * (work.horizon + work.tokens)
    return 2 * (body * work.horizon + per_draw) * draws + attention * draws + 2 * context * work.tokens * (draws > 0)


def passes(shapes: Any, trained: Any) -> dict[str, float]:
    """FLOPs per weight and token of each tower, given what is trained.

    2 for the forward pass; 2 more where a gradient must pass through, because something in the tower or before it is
    trained; and 2 more for the share of the tower's weights that have a gradient themselves.

    Args:
      shapes: tree of weights or of their shapes.
      trained: tree of bool of the same structure (`optim.trainable`).
    """
    total, moving = dict.fromkeys(TOWERS, 0), dict.fromkeys(TOWERS, 0)
    for name, x, train in zip(paths.names(shapes), jax.tree.leaves(shapes), jax.tree.leaves(trained), strict=True):
        tower = name.split("/")[0]
        if tower in total:
            total[tower] += x.size
            moving[tower] += x.size * train
    found, reached = {}, False
    for tower in TOWERS:
        reached = reached or moving[tower] > 0
        found[tower] = 2.0 + 2.0 * reached + 2.0 * moving[tower] / max(1, total[tower])
    return found


def peak(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device, None if it is not known."""
    known = [kind for kind in PEAKS if device_kind.startswith(kind)]
    return PEAKS[max(known, key=len)] if known else None
