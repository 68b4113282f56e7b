"""Model and processor settings: frozen dataclasses, read from and written to the released JSON files."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Image encoder: SigLIP2 without class token or last norm. `depth` counts the stored layers.

    `taps` are the layers whose residual streams are concatenated, in that order. `attention` names, here and in the
    other towers, the function of `ops.ATTENTION` that computes it; `init_std` is that of fresh weights.
    """

    width: int
    mlp_width: int
    depth: int
    num_heads: int
    head_dim: int
    taps: tuple[int, ...]
    declared_depth: int
    image_size: int = 378
    patch_size: int = 14
    num_positions: int = 729
    norm_eps: float = 1e-6
    activation: str = "gelu_pytorch_tanh"
    attention: str = "matmul"
    init_std: float = 0.02

    @property
    def grid(self) -> int:
        """Patches along each side of a crop."""
        return self.image_size // self.patch_size

    @property
    def dims(self) -> dict[str, int]:
        return dict(
            layers=self.depth, embed=self.width, mlp=self.mlp_width, heads=self.num_heads,
            head_dim=self.head_dim, patches=self.num_positions, pixels=3 * self.patch_size**2,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """Attention pooling over the patches of a window, then a gated projection to the decoder's width."""

    width: int
    feature_width: int
    mlp_width: int
    out_width: int
    num_heads: int
    head_dim: int
    pooling_mask: bool = True
    activation: str = "silu"
    init_std: float = 0.02

    @property
    def dims(self) -> dict[str, int]:
        return dict(
            embed=self.width, features=self.feature_width, mlp=self.mlp_width, out=self.out_width, heads=self.num_heads,
            head_dim=self.head_dim,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """Decoder with grouped queries. `qk_norm` is None, "qwen3" (per head) or "olmo" (over the full width)."""

    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    extra_vocab_size: int = 128
    rope_base: float = 5e6
    norm_eps: float = 1e-6
    qk_norm: str | None = "qwen3"
    qkv_bias: bool = False
    norm_after: bool = False
    activation: str = "silu"
    max_positions: int = 36864
    attention: str = "matmul"
    init_std: float = 0.02

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def dims(self) -> dict[str, int]:
        return dict(
            layers=self.depth, embed=self.width, mlp=self.mlp_width, heads=self.num_heads, kv_heads=self.num_kv_heads,
            head_dim=self.head_dim, vocab=self.vocab_size, extra_vocab=self.extra_vocab_size,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    """Action expert. `conditioning` says what it reads of each decoder layer (paper Table 10):

    "kv" the flattened keys and values (released), "kv_heads" keys and values head by head,
    "hidden" the residual stream.
    """

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    context_width: int
    context_heads: int
    time_width: int = 256
    action_dim: int = 32
    context_norm: bool = True
    qk_norm: bool = True
    qk_norm_eps: float = 1e-6
    rope: bool = True
    causal: bool = False
    conditioning: str = "kv"
    mlp_ratio: float = 4.0
    mlp_multiple: int = 256
    attention: str = "matmul"

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def dims(self) -> dict[str, int]:
        return dict(
            layers=self.depth, embed=self.width, mlp=self.mlp_width, heads=self.num_heads,
            head_dim=self.head_dim, context_embed=self.context_width, context_heads=self.context_heads,
            context_head_dim=self.context_width // self.context_heads, time=self.time_width, cond=self.width,
            action=self.action_dim, shifts=9, final_shifts=2,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Flow matching from t=0 (noise) to t=1 (data): sampling steps and the density of training times."""

    num_steps: int = 10
    solver: str = "euler"
    beta_alpha: float = 1.0
    beta_beta: float = 1.5
    time_offset: float = 0.001
    time_scale: float = 0.999
    cutoff: float = 1.0


class DepthIds(NamedTuple):
    """Ids of the depth tokens: trigger, start and end of a span, code 0, and how many codes follow from there."""

    output: int
    start: int
    end: int
    first: int
    num_codes: int


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Ids of the tokens that the model treats specially. None where the vocabulary lacks a family."""

    bos: int
    eos: int
    pad: int
    image_start: int
    image_end: int
    image_patch: int
    image_col: int
    low_res_image_start: int
    image_low: int
    frame_start: int | None = None
    frame_end: int | None = None
    action_output: int | None = None
    action_start: int | None = None
    action_end: int | None = None
    action_first: int | None = None
    num_actions: int = 0
    depth_output: int | None = None
    depth_start: int | None = None
    depth_end: int | None = None
    depth_first: int | None = None
    num_depths: int = 0
    state_start: int | None = None
    state_end: int | None = None
    state_first: int | None = None
    num_states: int = 0

    @property
    def image_family(self) -> tuple[int, ...]:
        """Ids that attend to each other in both directions."""
        ids = (self.image_patch, self.image_col, self.image_start, self.low_res_image_start,
               self.frame_start, self.image_end, self.frame_end, self.image_low)  # fmt: skip
        return tuple(i for i in ids if i is not None)

    @property
    def depth(self) -> DepthIds:
        """The depth tokens; a ValueError where the vocabulary lacks some of them."""
        output, start, end, first = self.depth_output, self.depth_start, self.depth_end, self.depth_first
        if output is None or start is None or end is None or first is None:
            raise ValueError("tokens: no ids of depth tokens, expected them in config.json. Use depth='off'.")
        return DepthIds(output, start, end, first, self.num_depths)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The whole model. `expert` is None for a vision-language model without actions.

    `gate` is None, "single" or "per_layer" (Think fine-tunes). `bidirectional_images` lets image tokens of an
    example attend to each other in both directions, as released inference does.
    """

    vit: ViTConfig
    connector: ConnectorConfig
    llm: LLMConfig
    expert: ExpertConfig | None
    tokens: TokenIds
    flow: FlowConfig = FlowConfig()
    gate: str | None = None
    gate_bias: float = -4.0
    depth_reasoning: bool = False
    num_depth_codes: int = 100
    action_mode: str = "both"
    max_horizon: int = 30
    mask_action_dims: bool = True
    bidirectional_images: bool = True
    setup_tokens: bool = True
    control_tokens: bool = True
    norm_stats_filename: str = "norm_stats.json"

    @property
    def action_dim(self) -> int:
        return self.expert.action_dim if self.expert else 32


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """How pictures become crops, patches and tokens (`processor_config.json`). Sizes in pixels or patches."""

    image_size: int = 378
    patch_size: int = 14
    pooling: int = 2
    crop_mode: str = "resize"
    max_crops: int = 8
    overlap_margins: tuple[int, int] = (4, 4)
    image_col_tokens: bool = True
    single_crop_col_tokens: bool = False
    video_pooling: int = 3
    video_frames: int = 8
    video_fps: float = 2.0
    video_col_tokens: bool = False
    frame_tokens: bool = True


def build(cls: type, values: Mapping[str, Any], where: str = "config") -> Any:
    """Makes a dataclass from a nested mapping.

    Raises:
      ValueError: a key that the dataclass does not have (near names are listed), or one that is missing.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ValueError(f"{where}.{key}: unknown key, expected one of {sorted(fields)}.{near(key, fields)}")
    missing = [
        n for n, f in fields.items() if n not in values and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: missing {missing}, required by {cls.__name__}.")
    return cls(**{k: _coerce(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def near(word: str, words: Collection[str]) -> str:
    """Returns a sentence that asks for the most similar of `words`, or nothing."""
    close = difflib.get_close_matches(word, words, 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Turns mappings into dataclasses, and lists into tuples, as the annotation of a field says."""
    if isinstance(hint, types.UnionType) and value is not None:
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if isinstance(value, Mapping) and dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if isinstance(value, (list, tuple)):
        items = typing.get_args(hint)[:1] or (Any,)
        return tuple(_coerce(items[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    return value


def preset(name: str) -> ModelConfig:
    """Returns one of the named models: "tiny" (tests), "bench" (80 M parameters), "4b" (the released sizes)."""
    from molmoact2_jax import presets  # which builds on the classes above

    return presets.preset(name)
