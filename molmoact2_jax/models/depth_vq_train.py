"""Training of the depth VQ-VAE: reconstruction and commitment by gradient, the codebook by moving averages.

Source: `io.md` 6.1 (decay 0.99, commitment 0.25). Restarting dead codes is ours: the released training leaves them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.models import depth_vq
from molmoact2_jax.models.depth_vq import CODEBOOK, EMA_SIZE, EMA_SUM, DepthVQConfig, Params

if TYPE_CHECKING:
    import optax


@dataclasses.dataclass(frozen=True)
class VQTraining:
    """Settings of the codebook.

    Attributes:
      decay: share of the moving averages that a step keeps.
      commitment: weight of the pull of the encoder's vectors towards their codes.
      dead: a code chosen less often than this share of an even distribution restarts at a vector of the batch.
      patience: steps after which a restarted code that nothing chose restarts again.
    """

    decay: float = 0.99
    commitment: float = 0.25
    dead: float = 0.1
    patience: int = 20


class VQState(NamedTuple):
    """Parameters with the moving statistics of the codebook, and the optimizer's state."""

    params: Params
    optimizer: Any


class Usage(NamedTuple):
    """What a codec does to a set of depth maps; errors are mean squares on the scale [-1, 1].

    Attributes:
      used: share of the codes that occur at all.
      perplexity: exp of the entropy of the code distribution; the number of codes if all were equally frequent.
      error: of the maps decoded from their codes.
      pooled_error: of the maps averaged over each cell instead.
    """

    used: float
    perplexity: float
    error: float
    pooled_error: float


def start(cfg: DepthVQConfig, optimizer: optax.GradientTransformation, key: jax.Array) -> VQState:
    """Returns the state before the first step. The codebook is drawn from the first batch."""
    params = depth_vq.init(cfg, key)
    return VQState(params, optimizer.init(_learned(params)))


def losses(
    cfg: DepthVQConfig, training: VQTraining, learned: Params, params: Params, depth: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Computes the loss of a batch.

    Args:
      cfg: sizes.
      training: settings.
      learned: the convolutions, by which to differentiate.
      params: where the codebook is read.
      depth: f32[B, S, S, 1] in [-1, 1].

    Returns:
      Loss, and (reconstruction error, encoder vectors f32[B, cells, D], codes i32[B, cells]).
    """
    z = depth_vq.embed(cfg, learned, depth)
    codes = depth_vq.nearest(params, jax.lax.stop_gradient(z))
    quantised = params[CODEBOOK][codes]
    commitment = jnp.mean((z - quantised) ** 2)
    straight = z + jax.lax.stop_gradient(quantised - z)
    reconstruction = jnp.mean((depth_vq.reconstruct(cfg, learned, straight) - depth[..., 0]) ** 2)
    return reconstruction + training.commitment * commitment, (reconstruction, z, codes)


def update_codebook(
    training: VQTraining, params: Params, z: jax.Array, codes: jax.Array, key: jax.Array
) -> tuple[Params, jax.Array]:
    """Moves each code towards the mean of the vectors that chose it, then restarts the dead ones.

    Args:
      training: settings.
      params: with `CODEBOOK` and its statistics.
      z: f32[N, D], vectors of the batch.
      codes: i32[N].
      key: draws the vectors at which dead codes start again.

    Returns:
      The three new codebook tensors, and bool[codes], which were restarted.
    """
    size, total = params[EMA_SIZE], params[EMA_SUM]
    num = len(size)
    chosen = jax.nn.one_hot(codes, num)
    size = training.decay * size + (1 - training.decay) * chosen.sum(axis=0)
    total = training.decay * total + (1 - training.decay) * jnp.einsum("nk,nd->kd", chosen, z, precision="highest")
    least = training.dead * len(z) / num
    dead = size < least
    draws = z[jax.random.choice(key, len(z), (num,), replace=len(z) < num)]
    fresh = least * training.decay**-training.patience  # light, so that it soon follows its vectors, or dies
    size = jnp.where(dead, fresh, size)
    total = jnp.where(dead[:, None], draws * fresh, total)
    return {CODEBOOK: total / size[:, None], EMA_SIZE: size, EMA_SUM: total}, dead


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3,))
def step(
    cfg: DepthVQConfig,
    training: VQTraining,
    optimizer: optax.GradientTransformation,
    state: VQState,
    batch: tuple[jax.Array, jax.Array],
) -> tuple[VQState, dict[str, jax.Array]]:
    """Takes one step on (depth f32[B, S, S, 1], random key).

    Returns:
      The new state and scalars: `loss`, `reconstruction`, `used` (share of the codes in this batch), `restarted`.
    """
    depth, key = batch
    learned = _learned(state.params)
    differentiate = jax.value_and_grad(functools.partial(losses, cfg, training), has_aux=True)
    (loss, (reconstruction, z, codes)), gradient = differentiate(learned, state.params, depth)
    updates, moments = optimizer.update(gradient, state.optimizer, learned)
    learned = jax.tree.map(jnp.add, learned, updates)
    book, dead = update_codebook(training, state.params, z.reshape(-1, z.shape[-1]), codes.ravel(), key)
    used = jnp.mean(jnp.bincount(codes.ravel(), length=cfg.num_codes) > 0)
    scalars = dict(loss=loss, reconstruction=reconstruction, used=used, restarted=dead.sum())
    return VQState(learned | book, moments), scalars


def fit(
    cfg: DepthVQConfig,
    training: VQTraining,
    optimizer: optax.GradientTransformation,
    batches: Iterable[np.ndarray],
    seed: int,
) -> Iterator[tuple[VQState, dict[str, float]]]:
    """Trains on batches f32[B, S, S, 1] until they end; yields each state (gone with the next step) and its scalars."""
    key = jax.random.key(seed)
    state = start(cfg, optimizer, key)
    for index, depth in enumerate(batches):
        state, scalars = step(cfg, training, optimizer, state, (jnp.asarray(depth), jax.random.fold_in(key, index)))
        yield state, {name: float(value) for name, value in scalars.items()}


def measure(cfg: DepthVQConfig, params: Params, batches: Iterable[np.ndarray]) -> Usage:
    """Encodes and decodes batches f32[B, S, S, 1], and compares with averaging over each cell."""
    encode = jax.jit(functools.partial(depth_vq.encode, cfg))
    decode = jax.jit(functools.partial(depth_vq.decode, cfg))
    counts, errors, pooled, num = np.zeros(cfg.num_codes), 0.0, 0.0, 0
    for depth in batches:
        codes = encode(params, jnp.asarray(depth))
        counts += np.bincount(np.asarray(codes).ravel(), minlength=cfg.num_codes)
        errors += float(((np.asarray(decode(params, codes)) - depth[..., 0]) ** 2).mean(axis=(1, 2)).sum())
        pooled += float(((average_cells(depth, cfg.grid) - depth[..., 0]) ** 2).mean(axis=(1, 2)).sum())
        num += len(depth)
    share = counts[counts > 0] / counts.sum()
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    return Usage(float((counts > 0).mean()), perplexity, errors / num, pooled / num)


def average_cells(depth: np.ndarray, grid: int) -> np.ndarray:
    """Replaces each cell of f32[B, S, S, 1] by its mean; returns f32[B, S, S]."""
    batch, size = depth.shape[:2]
    cell = size // grid
    means = depth.reshape(batch, grid, cell, grid, cell).mean(axis=(2, 4))
    return means.repeat(cell, axis=1).repeat(cell, axis=2)


def _learned(params: Params) -> Params:
    return {name: value for name, value in params.items() if name not in (CODEBOOK, EMA_SIZE, EMA_SUM)}
