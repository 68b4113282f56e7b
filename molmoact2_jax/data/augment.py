"""Training augmentation of one picture on the host, with Pillow's own operations, as the released trainer calls them.

The reference of the device version, and the named host mode in the released order: at the camera's size, before the
resize. Source: `io.md` 3.7. For the same draw equal to torchvision 0.28 to the bit, but for one level in some of
100 000 values of a blurred picture, whose sum torchvision forms in another order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

MODES = ("photometric", "full")

CROP = 0.95  # side of the random crop, as a fraction of the picture's
ANGLE = 5.0  # degrees, either way
SPREAD = (0.2, 0.2, 0.2, 0.05)  # brightness, contrast, saturation around 1; hue around 0, of the colour circle
BLUR = 0.2  # probability
SIGMA = (0.1, 1.0)  # pixels
REACH = 2  # pixels of the blur's kernel to each side


class Draw(NamedTuple):
    """The random numbers of one picture.

    Attributes:
      corner: f64[2] in [0, 1), where the crop lies between the top left and the bottom right.
      angle: degrees, counter-clockwise.
      order: i64[4], the order of brightness 0, contrast 1, saturation 2, hue 3.
      factors: f64[4], of those four.
      blurred: whether the picture is blurred, by `sigma` pixels.
    """

    corner: np.ndarray
    angle: float
    order: np.ndarray
    factors: np.ndarray
    blurred: bool
    sigma: float


def draw(rng: np.random.Generator) -> Draw:
    """Draws the random numbers of one picture in the released ranges."""
    return Draw(
        corner=rng.random(2),
        angle=rng.uniform(-ANGLE, ANGLE),
        order=rng.permutation(4),
        factors=np.array([1.0, 1.0, 1.0, 0.0]) + np.array(SPREAD) * rng.uniform(-1, 1, 4),
        blurred=bool(rng.random() < BLUR),
        sigma=rng.uniform(*SIGMA),
    )


def augment(picture: np.ndarray, rng: np.random.Generator, mode: str = "full") -> np.ndarray:
    """Augments one picture.

    Args:
      picture: u8[H, W, 3].
      rng: drawn from alike in both modes.
      mode: "photometric" (colour and blur) or "full" (crop and rotation before them).

    Returns:
      u8[H, W, 3].

    Raises:
      ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"augment: mode {mode!r}, expected one of {MODES}. Choose one of them.")
    return apply(picture, draw(rng), mode)


def apply(picture: np.ndarray, drawn: Draw, mode: str) -> np.ndarray:
    """Applies one draw to one picture u8[H, W, 3]."""
    image = Image.fromarray(picture)
    if mode == "full":
        image = rotate(crop(image, drawn.corner), drawn.angle)
    for i in drawn.order:
        image = _COLOUR[i](image, float(drawn.factors[i]))
    pixels = np.asarray(image)
    return blur(pixels, drawn.sigma) if drawn.blurred and min(pixels.shape[:2]) > REACH else pixels


def crop(image: Image.Image, corner: np.ndarray) -> Image.Image:
    """Cuts 95% of both sides at `corner` and resizes the cut back."""
    cut = int(CROP * image.width), int(CROP * image.height)
    left = int(corner[1] * (image.width - cut[0] + 1))
    top = int(corner[0] * (image.height - cut[1] + 1))
    part = image.crop((left, top, left + cut[0], top + cut[1]))
    return part.resize(image.size, Image.Resampling.BILINEAR)


def rotate(image: Image.Image, angle: float) -> Image.Image:
    """Rotates about the centre by `angle` degrees counter-clockwise, black outside, keeping the size."""
    return image.rotate(angle, Image.Resampling.BILINEAR)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Scales all channels."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Scales the distance from the mean luminance."""
    return ImageEnhance.Contrast(image).enhance(factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Scales the distance from each pixel's luminance."""
    return ImageEnhance.Color(image).enhance(factor)


def hue(image: Image.Image, factor: float) -> Image.Image:
    """Turns the colour circle by `factor` of it, in 8-bit hue, saturation and value."""
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(int(factor * 255) % 256)  # wraps, as the circle does
    return Image.fromarray(hsv, "HSV").convert("RGB")


_COLOUR = (brightness, contrast, saturation, hue)


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs u8[H, W, 3] with a Gaussian of 5 x 5 pixels, mirrored at the edges, halves to even."""
    weights = np.exp(-0.5 * np.square(np.arange(-REACH, REACH + 1) / sigma)).astype(np.float32)
    weights /= weights.sum()
    padded = np.pad(pixels.astype(np.float32), ((REACH, REACH), (REACH, REACH), (0, 0)), mode="reflect")
    height, width = pixels.shape[:2]
    rows = sum(w * padded[i : i + height] for i, w in enumerate(weights))
    return np.rint(sum(w * rows[:, i : i + width] for i, w in enumerate(weights))).astype(np.uint8)
