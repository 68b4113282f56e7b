"""Depth VQ-VAE: a depth map to a grid of codes and back (`io.md` 6.1, AiT of Ning et al. 2023 as MolmoAct trained it).

Parameters are one flat dict with the released tensor names and layouts (`encoder.0.weight` is [out, in, 4, 4], a
transposed convolution [in, out, 4, 4]): the tree is the file. `encoder` and `decoder` declare each weight once.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]

CODEBOOK = "_vq_vae._embedding"  # f32[codes, code_dim]
EMA_SIZE = "_vq_vae._ema_cluster_size"  # f32[codes], moving count of vectors that chose each code
EMA_SUM = "_vq_vae._ema_w"  # f32[codes, code_dim], moving sum of those vectors


@dataclasses.dataclass(frozen=True)
class DepthVQConfig:
    """Sizes; the defaults are the released ones. `size` is in pixels, `width` the channels after the first halving."""

    size: int = 320
    width: int = 16
    halvings: int = 5
    residuals: int = 2
    num_codes: int = 128
    code_dim: int = 512

    @property
    def grid(self) -> int:
        """Cells along each side."""
        return self.size // 2**self.halvings

    @property
    def hidden(self) -> int:
        """Channels at the coarsest resolution."""
        return self.width * 2 ** (self.halvings - 1)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with bias: `stride` 2 halves the picture, or doubles it where `transposed`."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    transposed: bool = False
    relu: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        channels = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return (*channels, self.kernel, self.kernel)

    @property
    def fan_in(self) -> int:
        """Inputs that reach one output."""
        return self.inputs * self.kernel**2 // (self.stride**2 if self.transposed else 1)


Layer = Conv | tuple[Conv, ...]  # a tuple is a residual block


def encoder(cfg: DepthVQConfig) -> list[Layer]:
    """Declares the encoder; numbers in the names count the released modules, of which each ReLU is one."""
    widths = [1, *(cfg.width * 2**i for i in range(cfg.halvings))]
    halve = [
        Conv(f"encoder.{2 * i}", before, after, kernel=4, stride=2, relu=True)
        for i, (before, after) in enumerate(itertools.pairwise(widths))
    ]
    first = 2 * cfg.halvings
    blocks = [_residual(f"encoder.{first + i}.net", cfg.hidden) for i in range(cfg.residuals)]
    return [*halve, *blocks, Conv(f"encoder.{first + cfg.residuals}", cfg.hidden, cfg.code_dim, kernel=1)]


def decoder(cfg: DepthVQConfig) -> list[Layer]:
    """Declares the decoder, named like the encoder."""
    blocks = [_residual(f"decoder.{2 + i}.net", cfg.hidden) for i in range(cfg.residuals)]
    first = 2 + cfg.residuals
    widths = [cfg.hidden, *(cfg.hidden // 2**i for i in range(cfg.halvings))]
    double = [
        Conv(f"decoder.{first + 2 * i}", before, after, kernel=4, stride=2, transposed=True, relu=True)
        for i, (before, after) in enumerate(itertools.pairwise(widths))
    ]
    start = Conv("decoder.0", cfg.code_dim, cfg.hidden, kernel=1, relu=True)
    return [start, *blocks, *double, Conv(f"decoder.{first + 2 * cfg.halvings}", cfg.width, 1, kernel=1)]


def _residual(name: str, width: int) -> tuple[Conv, ...]:
    return (
        Conv(f"{name}.0", width, width, kernel=3, relu=True),
        Conv(f"{name}.2", width, width, kernel=3, relu=True),
        Conv(f"{name}.4", width, width, kernel=1),
    )


def convolutions(cfg: DepthVQConfig) -> list[Conv]:
    """Returns every convolution of both halves, in order."""
    layers = encoder(cfg) + decoder(cfg)
    return [conv for layer in layers for conv in ([layer] if isinstance(layer, Conv) else layer)]


def shapes(cfg: DepthVQConfig) -> dict[str, tuple[int, ...]]:
    """Returns {released tensor name: shape}, the moving statistics of the codebook included."""
    tensors: dict[str, tuple[int, ...]] = {}
    for conv in convolutions(cfg):
        tensors |= {f"{conv.name}.weight": conv.shape, f"{conv.name}.bias": (conv.outputs,)}
    book = (cfg.num_codes, cfg.code_dim)
    return tensors | {CODEBOOK: book, EMA_SIZE: (cfg.num_codes,), EMA_SUM: book}


def init(cfg: DepthVQConfig, key: jax.Array) -> Params:
    """Draws He-normal convolutions; residual blocks start as the identity, which trains several times faster.

    The codebook is empty until training fills it from the first batch.
    """
    convs = convolutions(cfg)
    closing = {layer[-1] for layer in encoder(cfg) + decoder(cfg) if isinstance(layer, tuple)}
    params = {name: jnp.zeros(shape) for name, shape in shapes(cfg).items()}
    for conv, one in zip(convs, jax.random.split(key, len(convs)), strict=True):
        if conv not in closing:
            params[f"{conv.name}.weight"] = jax.random.normal(one, conv.shape) * (2 / conv.fan_in) ** 0.5
    return params


def embed(cfg: DepthVQConfig, params: Params, depth: jax.Array) -> jax.Array:
    """Maps depth f32[B, S, S, 1] in [-1, 1] to one vector per cell, f32[B, grid * grid, D]."""
    z = _run(encoder(cfg), params, depth)
    return z.reshape(z.shape[0], -1, z.shape[-1])


def nearest(params: Params, z: jax.Array) -> jax.Array:
    """Returns i32[...], the code whose vector is nearest to each of z [..., D]; the lower code on a tie."""
    book = params[CODEBOOK]
    dots = jnp.einsum("...d,kd->...k", z, book, precision="highest")
    squares = jnp.sum(z**2, axis=-1, keepdims=True) + jnp.sum(book**2, axis=-1)
    return jnp.argmin(squares - 2 * dots, axis=-1).astype(jnp.int32)


def encode(cfg: DepthVQConfig, params: Params, depth: jax.Array) -> jax.Array:
    """Quantises depth maps.

    Args:
      cfg: sizes.
      params: weights, f32.
      depth: f32[B, 320, 320, 1] in [-1, 1], nearer is larger (`data/depth_maps.prepare`).

    Returns:
      i32[B, 100], codes in raster order, 0 .. num_codes - 1.
    """
    return nearest(params, embed(cfg, params, depth))


def reconstruct(cfg: DepthVQConfig, params: Params, vectors: jax.Array) -> jax.Array:
    """Maps code vectors f32[B, grid * grid, D] to depth f32[B, S, S]."""
    z = vectors.reshape(-1, cfg.grid, cfg.grid, vectors.shape[-1])
    return _run(decoder(cfg), params, z)[..., 0]


def decode(cfg: DepthVQConfig, params: Params, codes: jax.Array) -> jax.Array:
    """Draws depth f32[B, 320, 320], about [-1, 1], from codes i32[B, 100]."""
    return reconstruct(cfg, params, params[CODEBOOK][codes])


def levels(cfg: DepthVQConfig, params: Params) -> jax.Array:
    """Returns f32[codes], the mean depth of a map of only that code: how near each code is, for drawings."""

    def level(code: jax.Array) -> jax.Array:
        return decode(cfg, params, jnp.full((1, cfg.grid**2), code)).mean()

    return jax.lax.map(level, jnp.arange(cfg.num_codes))


def _run(layers: list[Layer], params: Params, x: jax.Array) -> jax.Array:
    for layer in layers:
        x = _apply(layer, params, x) if isinstance(layer, Conv) else x + _run(list(layer), params, x)
    return x


def _apply(layer: Conv, params: Params, x: jax.Array) -> jax.Array:
    weight, bias = params[f"{layer.name}.weight"], params[f"{layer.name}.bias"]
    y = _double(x, weight) if layer.transposed else _conv(x, weight.transpose(2, 3, 1, 0), layer.stride)
    return jax.nn.relu(y + bias) if layer.relu else y + bias


def _conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Runs a convolution [h, w, in, out] on [B, H, W, in]; kernels wider than 1 pad by 1, as released.

    Padding is an operation of its own because XLA's weight gradient of a padded kernel of 2 is 20 times slower on CPUs.
    """
    pad = min(kernel.shape[0] - 1, 1)
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=dimensions, precision="highest"
    )


def _double(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Runs a transposed convolution of kernel 4, stride 2, padding 1: [B, H, W, in] to [B, 2H, 2W, out].

    An even output row reads inputs i - 1 and i, an odd one i and i + 1: one convolution of kernel 2 computes all four
    phases of a pixel, several times faster than a convolution over spread inputs.
    """
    batch, height, width, inputs = x.shape
    outputs = weight.shape[1]
    taps = weight[:, :, ::-1, ::-1].reshape(inputs, outputs, 2, 2, 2, 2)  # [in, out, tap, phase, tap, phase]
    kernel = taps.transpose(2, 4, 0, 3, 5, 1).reshape(2, 2, inputs, 4 * outputs)
    y = _conv(x, kernel).reshape(batch, height + 1, width + 1, 2, 2, outputs)
    rows = [jnp.stack([y[:, i : i + height, j : j + width, i, j] for j in (0, 1)], axis=3) for i in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, outputs)
