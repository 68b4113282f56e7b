import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from molmoact2_jax.data import augment as reference
from molmoact2_jax.train import augment

SIZE = 46


def picture(seed=0):
    """A smooth colourful picture u8[46, 46, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def assert_same(ours, image, *, share=0.995):
    """All but a few pixels are equal; those differ by the rounding of single instead of double precision."""
    difference = np.abs(np.asarray(ours, np.int32) - np.asarray(image, np.int32))
    assert (difference == 0).mean() >= share and difference.max() <= 6, (difference.max(), (difference == 0).mean())


def turned_hue(image, factor):
    """Hue as torchvision turns it on Pillow pictures."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.array(hue) + np.int32(factor * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


REFERENCES = {
    "brightness": lambda image, f: ImageEnhance.Brightness(image).enhance(f),
    "contrast": lambda image, f: ImageEnhance.Contrast(image).enhance(f),
    "saturation": lambda image, f: ImageEnhance.Color(image).enhance(f),
    "hue": turned_hue,
}


@pytest.mark.parametrize("name", list(REFERENCES))
@pytest.mark.parametrize("position", [-1.0, -0.35, 0.0, 0.6, 1.0])
def test_each_colour_operation_is_that_of_pillow(name, position):
    factor = 0.05 * position if name == "hue" else 1 + 0.2 * position
    ours = getattr(augment, name)(jnp.asarray(picture(), jnp.float32), factor)
    assert_same(ours, REFERENCES[name](Image.fromarray(picture()), factor))


@pytest.mark.parametrize("angle", [-5.0, -1.3, 0.0, 2.2, 4.9])
def test_rotation_is_that_of_pillow_with_a_black_outside(angle):
    ours = augment.rotate(jnp.asarray(picture(), jnp.float32), angle)
    assert_same(ours, Image.fromarray(picture()).rotate(angle, resample=Image.Resampling.BILINEAR))


def test_cropping_is_that_of_pillow():
    cut = int(0.95 * SIZE)
    left, top = 1, 2
    image = Image.fromarray(picture()).crop((left, top, left + cut, top + cut))
    corner = (jnp.array([top, left]) + 0.5) / (SIZE - cut + 1)
    ours = augment.crop(jnp.asarray(picture(), jnp.float32), corner)
    assert_same(ours, image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def test_blur_matches_a_direct_sum_with_mirrored_edges():
    sigma, x = 0.8, picture().astype(np.float64)
    weights = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    want = sum(kernel[i, j] * padded[i : i + SIZE, j : j + SIZE] for i in range(5) for j in range(5))
    assert_same(augment.blur(jnp.asarray(x, jnp.float32), sigma), np.round(want))


def test_colours_are_applied_in_the_drawn_order():
    base = augment.draw(jax.random.key(0))._replace(factors=jnp.array([1.2, 0.8, 1.1, 0.04]), blurred=False)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        image = Image.fromarray(picture())
        for i in order:
            name = list(REFERENCES)[i]
            image = REFERENCES[name](image, float(base.factors[i]))
        ours = augment.apply(jnp.asarray(picture()), base._replace(order=jnp.array(order)), "photometric")
        assert_same(ours, image, share=0.97)  # a difference in one operation moves through the next


@pytest.mark.parametrize("mode", reference.MODES)
def test_one_draw_does_the_same_on_the_device_and_on_the_host(mode):
    run = jax.jit(lambda image, drawn: augment.apply(image, drawn, mode))
    for seed in range(6):
        drawn = augment.draw(jax.random.key(seed))
        host = reference.apply(picture(seed), reference.Draw(*(np.asarray(x) for x in drawn)), mode)
        assert_same(run(jnp.asarray(picture(seed)), drawn), host, share=0.97)


def test_statistics_of_augmented_pictures_are_distributed_as_on_the_host():
    many, image = 600, picture()
    rng = np.random.default_rng(0)
    host = np.stack([reference.augment(image, rng) for _ in range(many)])
    crops = jnp.broadcast_to(jnp.asarray(image), (many, 1, *image.shape))
    device = jax.jit(lambda x: augment.augment(x, jnp.arange(many), jax.random.key(5), "full"))(crops)[:, 0]
    statistics = {
        "mean": lambda x: x.mean(axis=(1, 2, 3)),
        "contrast": lambda x: x.std(axis=(1, 2, 3)),
        "saturation": lambda x: (x.max(axis=-1) - x.min(axis=-1)).mean(axis=(1, 2)),
        "sharpness": lambda x: np.abs(np.diff(x.astype(int), axis=1)).mean(axis=(1, 2, 3)),
        "black corner": lambda x: (x[:, :4, :4] == 0).mean(axis=(1, 2, 3)),
        "warmth": lambda x: x[..., 0].mean(axis=(1, 2)) - x[..., 2].mean(axis=(1, 2)),
    }
    for name, of in statistics.items():
        ours, theirs = np.sort(of(np.asarray(device))), np.sort(of(host))
        both = np.concatenate([ours, theirs])
        shares = [np.searchsorted(x, both, side="right") / many for x in (ours, theirs)]
        gap = np.abs(shares[0] - shares[1]).max()  # two-sample Kolmogorov-Smirnov
        assert gap < 1.95 * np.sqrt(2 / many), (name, gap)


@pytest.fixture(scope="module")
def drawn():
    return jax.vmap(augment.draw)(jax.random.split(jax.random.key(1), 6000))


def test_draws_are_uniform_over_the_released_ranges(drawn):
    edges = {"angle": (drawn.angle, -5, 5), "sigma": (drawn.sigma, 0.1, 1.0), "corner": (drawn.corner, 0, 1)}
    edges |= {name: (drawn.factors[:, i], 0.8, 1.2) for i, name in enumerate(("brightness", "contrast", "saturation"))}
    edges["hue"] = (drawn.factors[:, 3], -0.05, 0.05)
    for name, (values, low, high) in edges.items():
        unit = (np.sort(np.ravel(values)) - low) / (high - low)
        assert unit[0] >= -1e-6 and unit[-1] <= 1 + 1e-6, name
        gap = np.abs(unit - np.arange(len(unit)) / len(unit)).max()  # Kolmogorov-Smirnov
        assert gap < 2.0 / np.sqrt(len(unit)), (name, gap)


def test_a_fifth_is_blurred_and_every_order_is_as_likely(drawn):
    assert abs(float(drawn.blurred.mean()) - 0.2) < 4 * 0.4 / np.sqrt(6000)
    _, counts = np.unique(np.asarray(drawn.order) @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24 and np.abs(counts - 250).max() < 5 * np.sqrt(250)


def test_corners_cover_every_crop_position_evenly(drawn):
    free = SIZE - int(0.95 * SIZE) + 1
    _, counts = np.unique(np.floor(drawn.corner * free), return_counts=True)
    assert len(counts) == free and np.abs(counts - 12000 / free).max() < 5 * np.sqrt(12000 / free)


@pytest.fixture(scope="module")
def batch():
    return jnp.stack([jnp.stack([picture(2 * b + i) for i in range(2)]) for b in range(3)])


@pytest.mark.parametrize("mode", ["photometric", "full"])
def test_pictures_depend_on_step_row_and_index_alone(batch, mode):
    run = jax.jit(lambda crops, rows, key: augment.augment(crops, rows, key, mode))
    rows, key = jnp.array([5, 9, 2]), jax.random.key(3)
    whole = run(batch, rows, key)
    assert whole.dtype == jnp.uint8 and whole.shape == batch.shape
    np.testing.assert_array_equal(run(batch[::-1], rows[::-1], key)[::-1], whole)
    np.testing.assert_array_equal(run(batch[:1, :1], rows[:1], key), whole[:1, :1])
    same = jnp.broadcast_to(batch[0, 0], batch.shape)
    others = run(same, rows, key).reshape(6, -1)
    assert len({bytes(np.asarray(x)) for x in others}) == 6  # each row and picture has its own draw
    assert (run(batch, rows, jax.random.key(4)) != whole).any()


def test_photometric_keeps_every_pixel_in_its_place(batch):
    gray = jnp.broadcast_to(jnp.where(jnp.arange(SIZE) < SIZE // 2, 0, 200)[:, None, None], (SIZE, SIZE, 3))
    crops = jnp.asarray(gray, jnp.uint8)[None, None]
    for seed in range(8):
        photo = augment.augment(crops, jnp.zeros(1, int), jax.random.key(seed), "photometric")[0, 0]
        np.testing.assert_array_equal(photo, np.broadcast_to(photo[:, :1], photo.shape))  # rows stay rows
    full = augment.augment(crops, jnp.zeros(1, int), jax.random.key(0), "full")[0, 0]
    assert (full != full[:, :1]).any()


def test_none_is_the_identity(batch):
    assert augment.augment(batch, jnp.zeros(3, int), jax.random.key(0), "none") is batch


def test_an_unknown_mode_is_refused(batch):
    with pytest.raises(ValueError, match="mode 'strong', expected one of"):
        augment.augment(batch, jnp.zeros(3, int), jax.random.key(0), "strong")
