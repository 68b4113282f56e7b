"""Depth Anything V2: relative inverse depth from one picture, by DINOv2 and a DPT head (`io.md` 6.1 step 1).

As in `depth_vq`, parameters are one flat dict with the released tensor names and layouts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.nn import ops

Params = dict[str, jax.Array]

TAPS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23)}  # by depth: the blocks whose outputs the head reads
POSITION_OFFSET = 0.1  # patches; DINOv2 adds it to the size when it scales position embeddings
UNUSED = "pretrained.mask_token"


@dataclasses.dataclass(frozen=True)
class DepthAnythingConfig:
    """Sizes; the defaults are those of ViT-B. `grid` is in patches: that of the position embeddings."""

    width: int = 768
    depth: int = 12
    num_heads: int = 12
    taps: tuple[int, ...] = TAPS[12]
    channels: tuple[int, int, int, int] = (96, 192, 384, 768)
    features: int = 128
    head_features: int = 32
    patch: int = 14
    grid: int = 37


def shapes(cfg: DepthAnythingConfig) -> dict[str, tuple[int, ...]]:
    """Returns {released tensor name: shape}."""
    tensors: dict[str, tuple[int, ...]] = {
        "pretrained.cls_token": (1, 1, cfg.width),
        "pretrained.pos_embed": (1, cfg.grid**2 + 1, cfg.width),
        UNUSED: (1, cfg.width),
        **_weights("pretrained.patch_embed.proj", (cfg.width, 3, cfg.patch, cfg.patch)),
        **_weights("pretrained.norm", (cfg.width,)),
    }
    for i in range(cfg.depth):
        tensors |= _block(f"pretrained.blocks.{i}", cfg.width)
    return tensors | _head(cfg)


def _block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    scales = {f"{name}.ls{i}.gamma": (width,) for i in (1, 2)}
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width),
              "mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}  # fmt: skip
    return scales | {
        key: shape for part, size in linear.items() for key, shape in _weights(f"{name}.{part}", size).items()
    }


def _head(cfg: DepthAnythingConfig) -> dict[str, tuple[int, ...]]:
    width, half = cfg.features, cfg.features // 2
    kernels: dict[str, tuple[int, ...]] = {
        f"projects.{i}": (count, cfg.width, 1, 1) for i, count in enumerate(cfg.channels)
    }
    kernels |= {f"resize_layers.{i}": (cfg.channels[i], cfg.channels[i], k, k) for i, k in ((0, 4), (1, 2), (3, 3))}
    for i, unit, conv in itertools.product((1, 2, 3, 4), (1, 2), (1, 2)):
        kernels[f"scratch.refinenet{i}.resConfUnit{unit}.conv{conv}"] = (width, width, 3, 3)
    kernels |= {f"scratch.refinenet{i}.out_conv": (width, width, 1, 1) for i in (1, 2, 3, 4)}
    kernels |= {"scratch.output_conv1": (half, width, 3, 3), "scratch.output_conv2.0": (cfg.head_features, half, 3, 3),
                "scratch.output_conv2.2": (1, cfg.head_features, 1, 1)}  # fmt: skip
    tensors: dict[str, tuple[int, ...]] = {
        f"depth_head.scratch.layer{i + 1}_rn.weight": (width, count, 3, 3) for i, count in enumerate(cfg.channels)
    }
    for name, shape in kernels.items():
        tensors |= _weights(f"depth_head.{name}", shape)
    return tensors


def _weights(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def estimate(cfg: DepthAnythingConfig, params: Params, pixels: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Estimates depth.

    Args:
      cfg: sizes.
      params: weights, f32.
      pixels: f32[B, h, w, 3], normalised RGB, h and w multiples of the patch (`data/depth_maps.network_input`).
      size: (H, W) of the result; the released annotation takes the picture's own.

    Returns:
      f32[B, H, W], at least 0, relative: larger is nearer.
    """
    batch, height, width, _ = pixels.shape
    grid = (height // cfg.patch, width // cfg.patch)
    features = [x.reshape(batch, *grid, cfg.width) for x in _encode(cfg, params, pixels, grid)]
    depth = _decode(params, features, (height, width))
    return _resize(jax.nn.relu(depth), size)[..., 0]


def _encode(cfg: DepthAnythingConfig, params: Params, pixels: jax.Array, grid: tuple[int, int]) -> list[jax.Array]:
    """Returns the normalised patch features of the tapped blocks, each [B, P, D]."""
    weights = _Named(params, "pretrained.")
    x = _conv(weights, "patch_embed.proj", pixels, stride=cfg.patch)
    x = x.reshape(len(x), -1, cfg.width)
    x = jnp.concatenate([jnp.broadcast_to(weights["cls_token"], (len(x), 1, cfg.width)), x], axis=1)
    x = x + _positions(cfg, weights["pos_embed"], grid)
    taps = []
    for i in range(cfg.depth):
        x = _transform(cfg, _Named(params, f"pretrained.blocks.{i}."), x)
        if i in cfg.taps:
            taps.append(_norm(weights, "norm", x)[:, 1:])
    return taps


def _transform(cfg: DepthAnythingConfig, weights: _Named, x: jax.Array) -> jax.Array:
    batch, tokens, width = x.shape
    qkv = _linear(weights, "attn.qkv", _norm(weights, "norm1", x))
    q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, cfg.num_heads, -1), 2, 0)
    y = ops.attend(q, k, v).reshape(batch, tokens, width)
    x = x + weights["ls1.gamma"] * _linear(weights, "attn.proj", y)
    hidden = jax.nn.gelu(_linear(weights, "mlp.fc1", _norm(weights, "norm2", x)), approximate=False)
    return x + weights["ls2.gamma"] * _linear(weights, "mlp.fc2", hidden)


def _positions(cfg: DepthAnythingConfig, embeddings: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Scales position embeddings [1, 1 + N, D] to another grid, bicubically."""
    if grid == (cfg.grid, cfg.grid):
        return embeddings
    first, rest = embeddings[:, :1], embeddings[:, 1:].reshape(cfg.grid, cfg.grid, -1)
    rows, columns = (_cubic(cfg.grid, count) for count in grid)
    scaled = jnp.einsum("Hh,hwd,Ww->HWd", rows, rest, columns, precision="highest")
    return jnp.concatenate([first, scaled.reshape(1, -1, scaled.shape[-1])], axis=1)


@functools.cache
def _cubic(source: int, target: int) -> np.ndarray:
    """Returns f32[target, source], weights of PyTorch's bicubic interpolation (a = -0.75, edges repeated)."""
    at = (np.arange(target) + 0.5) * (source / (target + POSITION_OFFSET)) - 0.5
    base = np.floor(at).astype(int)
    weights = np.zeros((target, source))
    for tap in (-1, 0, 1, 2):
        far = np.abs(at - base - tap)
        near = (1.25 * far - 2.25) * far**2 + 1
        tail = -0.75 * (far**3 - 5 * far**2 + 8 * far - 4)
        np.add.at(weights, (np.arange(target), np.clip(base + tap, 0, source - 1)), np.where(far <= 1, near, tail))
    return weights.astype(np.float32)


def _decode(params: Params, features: list[jax.Array], size: tuple[int, int]) -> jax.Array:
    """Fuses features of four depths, coarse to fine; returns [B, *size, 1]."""
    weights = _Named(params, "depth_head.")
    layers = [_conv(weights, f"projects.{i}", x) for i, x in enumerate(features)]
    layers[0] = _enlarge(weights, "resize_layers.0", layers[0])
    layers[1] = _enlarge(weights, "resize_layers.1", layers[1])
    layers[3] = _conv(weights, "resize_layers.3", layers[3], stride=2, pad=1)
    layers = [_conv(weights, f"scratch.layer{i + 1}_rn", x, pad=1) for i, x in enumerate(layers)]
    path = _refine(weights, "scratch.refinenet4", layers[3], None, layers[2].shape[1:3])
    path = _refine(weights, "scratch.refinenet3", path, layers[2], layers[1].shape[1:3])
    path = _refine(weights, "scratch.refinenet2", path, layers[1], layers[0].shape[1:3])
    path = _refine(weights, "scratch.refinenet1", path, layers[0], (2 * path.shape[1], 2 * path.shape[2]))
    path = _resize(_conv(weights, "scratch.output_conv1", path, pad=1), size)
    path = jax.nn.relu(_conv(weights, "scratch.output_conv2.0", path, pad=1))
    return jax.nn.relu(_conv(weights, "scratch.output_conv2.2", path))


def _refine(weights: _Named, name: str, x: jax.Array, skip: jax.Array | None, size: tuple[int, ...]) -> jax.Array:
    if skip is not None:
        x = x + _unit(weights, f"{name}.resConfUnit1", skip)
    x = _resize(_unit(weights, f"{name}.resConfUnit2", x), size)
    return _conv(weights, f"{name}.out_conv", x)


def _unit(weights: _Named, name: str, x: jax.Array) -> jax.Array:
    y = _conv(weights, f"{name}.conv1", jax.nn.relu(x), pad=1)
    return x + _conv(weights, f"{name}.conv2", jax.nn.relu(y), pad=1)


def _resize(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Resizes [B, h, w, C] linearly, corners on corners."""
    rows, columns = (_aligned(source, target) for source, target in zip(x.shape[1:3], size, strict=True))
    x = jnp.einsum("Hh,bhwc->bHwc", rows, x, precision="highest")
    return jnp.einsum("Ww,bhwc->bhWc", columns, x, precision="highest")


@functools.cache
def _aligned(source: int, target: int) -> np.ndarray:
    """Returns f32[target, source], weights of linear interpolation with aligned corners."""
    at = np.arange(target) * ((source - 1) / max(target - 1, 1))
    return np.maximum(1 - np.abs(at[:, None] - np.arange(source)), 0).astype(np.float32)


def _enlarge(weights: _Named, name: str, x: jax.Array) -> jax.Array:
    """Runs a transposed convolution whose stride is its kernel: each pixel becomes a square."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    y = jnp.einsum("bhwi,ioyx->bhywxo", x, kernel, precision="highest")
    batch, height, k, width, _, channels = y.shape
    return y.reshape(batch, height * k, width * k, channels) + bias


def _conv(weights: _Named, name: str, x: jax.Array, stride: int = 1, pad: int = 0) -> jax.Array:
    kernel = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _linear(weights: _Named, name: str, x: jax.Array) -> jax.Array:
    return jnp.einsum("btd,fd->btf", x, weights[f"{name}.weight"], precision="highest") + weights[f"{name}.bias"]


def _norm(weights: _Named, name: str, x: jax.Array) -> jax.Array:
    return ops.layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


class _Named:
    """The tensors whose names begin with a prefix, by the rest of their names."""

    def __init__(self, params: Params, prefix: str):
        self._params, self._prefix = params, prefix

    def __getitem__(self, name: str) -> jax.Array:
        return self._params[self._prefix + name]

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._params
