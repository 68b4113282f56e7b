"""Model and processor settings: frozen dataclasses, read from and written to the released JSON files."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Image encoder: SigLIP2 without class token or last norm. `depth` counts the stored layers.

    `taps` are the layers whose residual streams are concatenated, in that order.
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

    @property
    def grid(self) -> int:
        """Patches along each side of a crop."""
        return self.image_size // self.patch_size

    @property
    def dims(self) -> dict[str, int]:
        return dict(
            layers=self.depth,
            embed=self.width,
            mlp=self.mlp_width,
            heads=self.num_heads,
            head_dim=self.head_dim,
            patches=self.num_positions,
            pixels=3 * self.patch_size**2,
        )


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

    @property
    def dims(self) -> dict[str, int]:
        return dict(
            embed=self.width,
            features=self.feature_width,
            mlp=self.mlp_width,
            out=self.out_width,
            heads=self.num_heads,
            head_dim=self.head_dim,
        )


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

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def dims(self) -> dict[str, int]:
        return dict(
            layers=self.depth,
            embed=self.width,
            mlp=self.mlp_width,
            heads=self.num_heads,
            kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab=self.vocab_size,
            extra_vocab=self.extra_vocab_size,
        )


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

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def dims(self) -> dict[str, int]:
        return dict(
            layers=self.depth,
            embed=self.width,
            mlp=self.mlp_width,
            heads=self.num_heads,
            head_dim=self.head_dim,
            context_embed=self.context_width,
            context_heads=self.context_heads,
            context_head_dim=self.context_width // self.context_heads,
            time=self.time_width,
            action=self.action_dim,
            shifts=9,
            final_shifts=2,
        )


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
            raise ValueError(f"{where}.{key}: unknown key, expected one of {sorted(fields)}.{_near(key, fields)}")
    missing = [
        n for n, f in fields.items() if n not in values and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: missing {missing}, required by {cls.__name__}.")
    return cls(**{k: _coerce(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def _near(word: str, words: Any) -> str:
    import difflib

    close = difflib.get_close_matches(word, words, 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _coerce(hint: Any, value: Any, where: str) -> Any:
    options = [h for h in typing.get_args(hint) if h is not type(None)] or [hint]
    if isinstance(value, Mapping) and dataclasses.is_dataclass(options[0]):
        return build(typing.cast(type, options[0]), value, where)
    return tuple(value) if isinstance(value, list) else value


def preset(name: str) -> ModelConfig:
    """Returns one of the named models: "tiny" (tests), "bench" (80 M parameters), "4b" (the released sizes).

    Raises:
      ValueError: another name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r}, expected one of {sorted(PRESETS)}.{_near(name, PRESETS)}")
    size = PRESETS[name]
    vit, llm, expert = (dict(size[part]) for part in ("vit", "llm", "expert"))
    declared = vit.pop("declared_depth")
    taps = (declared - 3, declared - 9)
    patches = (vit["image_size"] // 14) ** 2
    encoder = ViTConfig(**vit, depth=taps[0] + 1, taps=taps, declared_depth=declared, num_positions=patches)
    decoder = LLMConfig(**llm)
    return ModelConfig(
        vit=encoder,
        connector=ConnectorConfig(
            width=vit["width"],
            feature_width=2 * vit["width"],
            mlp_width=llm["mlp_width"],
            out_width=llm["width"],
            num_heads=vit["num_heads"],
            head_dim=vit["head_dim"],
        ),
        llm=decoder,
        expert=ExpertConfig(
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


def _token_ids(base: int, vocab: int, depths: int) -> TokenIds:
    """Ids in the released order: special tokens end the base vocabulary, families follow, images come behind `vocab`."""
    ends = base if base < 10_000 else 151_646  # a truncated vocabulary puts its three special tokens last
    action = base + 6 + 256
    depth = action + 3 + 2048
    has = (lambda i: i) if depths else (lambda i: None)
    return TokenIds(
        bos=ends - 1, eos=ends - 1, pad=ends - 3, image_start=vocab, image_end=vocab + 1, image_patch=vocab + 2,
        image_col=vocab + 3, low_res_image_start=vocab + 4, image_low=vocab + 6, frame_start=vocab + 7,
        frame_end=vocab + 8, state_start=base + 4, state_end=base + 5, state_first=base + 6, num_states=256,
        action_output=action, action_start=action + 1, action_end=action + 2, action_first=action + 3,
        num_actions=2048, depth_output=has(depth), depth_start=has(depth + 1), depth_end=has(depth + 2),
        depth_first=has(depth + 3), num_depths=depths,
    )  # fmt: skip
