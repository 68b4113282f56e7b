"""Training augmentation of resized crops, on the device.

The operations and ranges are those of the released trainer (training.md 4.6), down to the 8-bit rounding of the Pillow
functions it calls; they apply to the resized crop, while the released trainer applies them before it resizes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MODES = ("none", "photometric", "full")

CROP = 0.95  # side of the random crop, as a fraction of the picture's
ANGLE = 5.0  # degrees, either way
BRIGHTNESS = CONTRAST = SATURATION = 0.2  # factors in [1 - x, 1 + x]
HUE = 0.05  # of the colour circle, either way
BLUR = 0.2  # probability
SIGMA = (0.1, 1.0)  # pixels
KERNEL = 5  # pixels


class Draw(NamedTuple):
    """The random numbers of one picture.

    Attributes:
      corner: f32[2] in [0, 1), where the crop lies between the top left and the bottom right.
      angle: f32[], degrees, counter-clockwise.
      order: i32[4], the order of brightness 0, contrast 1, saturation 2, hue 3.
      factors: f32[4], of those four.
      blurred: bool[].
      sigma: f32[], pixels.
    """

    corner: jax.Array
    angle: jax.Array
    order: jax.Array
    factors: jax.Array
    blurred: jax.Array
    sigma: jax.Array


def augment(crops: jax.Array, rows: jax.Array, key: jax.Array, mode: str) -> jax.Array:
    """Augments every picture on its own.

    Args:
      crops: u8[B, I, H, W, 3].
      rows: i32[B], global index of each row; with the index of the picture it is folded into `key`.
      key: random key of the step.
      mode: "none", "photometric" (colour and blur) or "full" (also crop and rotation).

    Returns:
      u8[B, I, H, W, 3].

    Raises:
      ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"augment: mode {mode!r}, expected one of {MODES}. Choose one of them.")
    if mode == "none":
        return crops

    def one(image: jax.Array, row: jax.Array, index: jax.Array) -> jax.Array:
        return apply(image, draw(jax.random.fold_in(jax.random.fold_in(key, row), index)), mode)

    per_row = jax.vmap(one, in_axes=(0, None, 0))
    return jax.vmap(per_row, in_axes=(0, 0, None))(crops, rows, jnp.arange(crops.shape[1]))


def draw(key: jax.Array) -> Draw:
    """Draws the random numbers of one picture in the released ranges."""
    keys = jax.random.split(key, 6)
    spread = jnp.array([BRIGHTNESS, CONTRAST, SATURATION, HUE])
    middle = jnp.array([1.0, 1.0, 1.0, 0.0])
    return Draw(
        corner=jax.random.uniform(keys[0], (2,)),
        angle=jax.random.uniform(keys[1], minval=-ANGLE, maxval=ANGLE),
        order=jax.random.permutation(keys[2], 4),
        factors=middle + spread * jax.random.uniform(keys[3], (4,), minval=-1.0, maxval=1.0),
        blurred=jax.random.bernoulli(keys[4], BLUR),
        sigma=jax.random.uniform(keys[5], minval=SIGMA[0], maxval=SIGMA[1]),
    )


def apply(image: jax.Array, drawn: Draw, mode: str) -> jax.Array:
    """Applies one draw to one picture u8[H, W, 3]."""
    x = image.astype(jnp.float32)
    if mode == "full":
        x = rotate(crop(x, drawn.corner), drawn.angle)
    for i in range(4):
        x = jax.lax.switch(drawn.order[i], _COLOUR, x, drawn.factors[drawn.order[i]])
    return jnp.where(drawn.blurred, blur(x, drawn.sigma), x).astype(jnp.uint8)


def crop(x: jax.Array, corner: jax.Array) -> jax.Array:
    """Cuts 95% of both sides at `corner` and resizes the cut back, bilinear, rounding after each axis."""
    height, width = x.shape[:2]
    cut = (int(CROP * height), int(CROP * width))
    start = [jnp.floor(c * (full - part + 1)).astype(jnp.int32) for c, full, part in zip(corner, (height, width), cut)]
    x = jax.lax.dynamic_slice(x, (*start, 0), (*cut, 3))
    x = _round(jnp.einsum("hwc,vw->hvc", x, _upsampling(cut[1], width), precision="highest"))
    return _round(jnp.einsum("hwc,uh->uwc", x, _upsampling(cut[0], height), precision="highest"))


def _round(x: jax.Array) -> jax.Array:
    """Rounds halves up, as Pillow does."""
    return jnp.floor(x + 0.5)


@functools.cache
def _upsampling(source: int, size: int) -> np.ndarray:
    """Weights f32[size, source] of a bilinear enlargement with pixels at half-integer positions."""
    where = (np.arange(size) + 0.5) * source / size - 0.5
    weights = np.maximum(0, 1 - np.abs(where[:, None] - np.arange(source)))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotates about the centre by `angle` degrees counter-clockwise, bilinear, black outside, keeping the size."""
    height, width = x.shape[:2]
    turn = jnp.deg2rad(angle)
    dy, dx = jnp.meshgrid(*(jnp.arange(n) + 0.5 - n / 2 for n in (height, width)), indexing="ij")
    column = jnp.cos(turn) * dx - jnp.sin(turn) * dy + width / 2
    row = jnp.sin(turn) * dx + jnp.cos(turn) * dy + height / 2
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)

    def at(i: jax.Array, j: jax.Array) -> jax.Array:
        flat = jnp.clip(i, 0, height - 1) * width + jnp.clip(j, 0, width - 1)
        return jnp.take(x.reshape(-1, 3), flat, axis=0)

    top, left = (jnp.floor(v - 0.5).astype(jnp.int32) for v in (row, column))
    down, right = row - 0.5 - top, column - 0.5 - left
    upper, lower = (_mix(at(i, left), at(i, left + 1), right[..., None]) for i in (top, top + 1))
    return jnp.where(inside[..., None], jnp.floor(_mix(upper, lower, down[..., None])), 0.0)


def _mix(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """Goes from a at weight 0 to b at weight 1."""
    return a + weight * (b - a)


def _blend(degenerate: jax.Array, x: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves x away from (factor > 1) or towards a degenerate picture, as `PIL.Image.blend` truncates it."""
    return jnp.floor(jnp.clip(_mix(degenerate, x, factor), 0, 255))


def _gray(x: jax.Array) -> jax.Array:
    """Luminance of the ITU-R 601-2 transform in Pillow's 16-bit arithmetic, [H, W, 1]."""
    red, green, blue = (x[..., i : i + 1].astype(jnp.int32) for i in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(jnp.float32)


def brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales all channels."""
    return _blend(jnp.zeros_like(x), x, factor)


def contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from the mean luminance."""
    return _blend(jnp.floor(_gray(x).mean() + 0.5), x, factor)


def saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from each pixel's luminance."""
    return _blend(_gray(x), x, factor)


def hue(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Turns the colour circle by `factor` of it, in 8-bit hue, saturation and value."""
    top, bottom = x.max(axis=-1), x.min(axis=-1)
    spread = jnp.maximum(top - bottom, 1.0)
    red, green, blue = ((top - x[..., i]) / spread for i in range(3))
    angle = jnp.where(x[..., 0] == top, blue - green, jnp.where(x[..., 1] == top, 2 + red - blue, 4 + green - red))
    colourless = top == bottom
    h = jnp.where(colourless, 0.0, jnp.floor((angle / 6 + 1) % 1 * 255))
    s = jnp.where(colourless, 0.0, jnp.floor((top - bottom) / jnp.maximum(top, 1.0) * 255)) / 255
    turned = (h + jnp.trunc(factor * 255)) % 256

    place = (jnp.array([5.0, 3.0, 1.0]) + turned[..., None] * 6 / 255) % 6
    fade = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)  # how far each channel is from the value, by its sector
    return _round(top[..., None] * (1 - s[..., None] * fade))


_COLOUR = (brightness, contrast, saturation, hue)


def blur(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blurs with a Gaussian of 5 x 5 pixels, mirrored at the edges."""
    reach = KERNEL // 2
    weights = jnp.exp(-0.5 * jnp.square(jnp.arange(-reach, reach + 1) / sigma))
    weights = weights / weights.sum()
    return jnp.round(_slide(_slide(x, weights, axis=1), weights, axis=0))


def _slide(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Weighted sum of the neighbours along an axis of [H, W, 3]."""
    size, reach = x.shape[axis], len(weights) // 2
    padded = jnp.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(3)], mode="reflect")
    parts = [w * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i, w in enumerate(weights)]
    return functools.reduce(jnp.add, parts)
