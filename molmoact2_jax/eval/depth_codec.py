"""The depth codec over the maps of a dataset: fits it, encodes with it, draws what it does."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax

from molmoact2_jax.data import depth, depth_companion, depth_maps, lerobot_meta
from molmoact2_jax.data.depth_columns import FRAMES, Annotator, Encode
from molmoact2_jax.eval import pictures
from molmoact2_jax.models import depth_vq, depth_vq_train
from molmoact2_jax.models.depth_vq import DepthVQConfig, Params

BATCH, PEAK_RATE, WARMUP = 4, 3e-3, 100  # small batches fit the codec several times faster per map than large ones
CODE_DECAY = 0.97  # of the codebook; with the released 0.99 codes are a hundred steps behind, which a short fit feels
SECOND_DECAY = 0.95  # of the squared gradients, which fall by orders of magnitude within the first hundred steps
MAX_NORM = 1.0  # of the gradient, whose peaks otherwise undo what the released width has learned
MEASURED = 64  # maps that usage and errors are reported on


def encoder(cfg: DepthVQConfig, params: Params) -> Encode:
    """Returns the codec as a function of NumPy arrays with up to `FRAMES` maps, compiled once.

    Raises:
      ValueError: the codec has another grid, or more codes, than there are depth tokens.
    """
    if cfg.grid != depth.GRID or cfg.num_codes > depth.NUM_CODES:
        raise ValueError(
            f"codec: grid {cfg.grid} and {cfg.num_codes} codes, expected {depth.GRID} and up to {depth.NUM_CODES}."
        )
    compiled = jax.jit(functools.partial(depth_vq.encode, cfg))

    def encode(maps: np.ndarray) -> np.ndarray:
        padded = np.zeros((FRAMES, *maps.shape[1:]), np.float32)
        padded[: len(maps)] = maps
        return np.asarray(compiled(params, padded))[: len(maps)]

    return encode


def fit(
    cfg: DepthVQConfig,
    draw: Callable[[np.random.Generator, bool], np.ndarray],
    steps: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> tuple[Params, depth_vq_train.Usage]:
    """Trains a codec from scratch.

    Args:
      cfg: sizes.
      draw: `(rng, held_out) -> f32[320, 320, 1]`, a random map to learn from, or to measure on.
      steps: of `BATCH` maps.
      seed: of weights and draws.
      progress: called with (steps done, steps).

    Returns:
      Parameters, and what they do to `MEASURED` maps that are held out.
    """
    rng = np.random.default_rng(seed)
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK_RATE, min(WARMUP, steps // 2), steps)
    batches = (np.stack([draw(rng, False) for _ in range(BATCH)]) for _ in range(steps))
    training = depth_vq_train.VQTraining(CODE_DECAY)
    adamw = optax.adamw(rate, b2=SECOND_DECAY, weight_decay=1e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_NORM), adamw)
    params: Params = {}
    for index, (state, _) in enumerate(depth_vq_train.fit(cfg, training, optimizer, batches, seed)):
        params = state.params
        progress(index + 1, steps)
    held = (np.stack([draw(rng, True) for _ in range(BATCH)]) for _ in range(MEASURED // BATCH))
    return params, depth_vq_train.measure(cfg, params, held)


def drawer(
    meta: lerobot_meta.Meta, maps: depth_maps.Maps, kind: str
) -> Callable[[np.random.Generator, bool], np.ndarray]:
    """Returns `draw` of `fit` for a dataset: every tenth episode is held out, where there are several."""
    held = np.arange(len(meta.ids)) % 10 == 0
    shares = {out: meta.lengths * (held == out if len(held) > 1 else 1) for out in (False, True)}

    def draw(rng: np.random.Generator, held_out: bool) -> np.ndarray:
        position = rng.choice(len(held), p=shares[held_out] / shares[held_out].sum())
        frame = int(rng.integers(meta.lengths[position]))
        (values,) = maps(int(meta.ids[position]), [frame])
        return draw(rng, held_out) if values is None else depth_maps.prepare(values, kind)

    return draw


def sheet(
    annotator: Annotator, companion: pathlib.Path, codec: tuple[DepthVQConfig, Params], rows: int = 5
) -> Iterator[pictures.DepthFrame]:
    """Yields frames spread over the first episode, with the buffer that a model is trained on, for `pictures`."""
    cfg, params = codec
    position = int(np.flatnonzero(annotator.source.episode_lengths)[0])
    number, length = int(annotator.meta.ids[position]), int(annotator.meta.lengths[position])
    columns = depth_companion.read(companion, annotator.meta.data[position], number)
    decode = jax.jit(functools.partial(depth_vq.decode, cfg))
    for frame in np.unique(np.linspace(0, length - 1, rows).astype(int)).tolist():
        camera = annotator.settings.camera
        (values,) = annotator.maps(number, [frame])
        yield pictures.DepthFrame(
            title=f"episode {number}, frame {frame}",
            picture=annotator.source.frames(position, [frame], [camera])[camera][0],
            codes=columns.buffer[frame],
            mask=columns.mask[frame],
            depth=None if values is None else depth_maps.prepare(values, annotator.settings.kind),
            decoded=np.asarray(decode(params, columns.buffer[frame][None]))[0],
        )
