"""One training step: packed rows in, moved weights out. The same function on one device and on a pod."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from molmoact2_jax import batch as batches
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.nn.params import Params
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.parallel import partition
from molmoact2_jax.train import augment, losses, optim, streams
from molmoact2_jax.train.accumulate import accumulate

Tree = Any
Metrics = dict[str, jax.Array]


class State(NamedTuple):
    """What a run carries from step to step.

    train: f32 masters of the trained weights, None elsewhere; frozen: the rest, in the compute dtype, None elsewhere;
    optimizer: moments, counters and the averaged weights of `train`.
    """

    train: Tree
    frozen: Tree
    optimizer: optim.State


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Everything that the compiled step depends on.

    Attributes:
      model: the network.
      loss: the objective.
      optimizer: numbers of AdamW.
      steps: length of the schedule.
      accumulation: slices of the rows that are computed one after the other.
      dtype: of weights and activations in the forward and backward pass.
      augment: mode of `augment.augment`.
      seed: of all random draws; with step, row, chunk and sample it gives every key.
      added_rows: ids [first, last) of the vocabulary table that train where the rest of it is frozen.
    """

    model: ModelConfig
    loss: losses.LossConfig
    optimizer: optim.OptimConfig
    steps: int
    accumulation: int = 1
    dtype: str = "bfloat16"
    augment: str = "full"
    seed: int = 6198
    added_rows: tuple[int, int] | None = None


def make(cfg: StepConfig) -> Callable[[State, losses.Rows], tuple[State, Metrics]]:
    """Returns the pure step `(state, rows) -> (state, metrics)`; `compile_step` places it on a mesh.

    Metrics named `sum/...` are sums over rows that `metrics.summarize` turns into means.
    """
    problem = losses.Problem(cfg.model, cfg.loss)

    def step(state: State, rows: losses.Rows) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(cfg.seed), state.optimizer.step)
        images = augment.augment(rows.crops, rows.row, streams.key_of(key, "augment"), cfg.augment)
        rows = rows._replace(crops=images)
        over = losses.totals(rows)

        def slice_sums(part: losses.Rows) -> tuple[Tree, Metrics]:
            def objective(train: Tree) -> tuple[jax.Array, Metrics]:
                weights = compute_params(cfg.dtype, train, state.frozen)
                loss, metrics = losses.total(problem, weights, part, over, key)
                return loss, {"loss": loss, **metrics}

            (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.train)
            return grads, metrics

        grads, metrics = accumulate(slice_sums, rows, cfg.accumulation)
        if cfg.added_rows is not None:
            grads = optim.keep_rows(grads, cfg.added_rows)
        train, optimizer, more = optim.update(cfg.optimizer, cfg.steps, grads, state.optimizer, state.train)
        return State(train, state.frozen, optimizer), {**metrics, **more}

    return step


def evaluate(cfg: StepConfig) -> Callable[[State, losses.Rows], Metrics]:
    """Returns the validation loss `(state, rows) -> metrics`: no dropout, no augmentation, averaged weights if kept."""
    problem = losses.Problem(cfg.model, cfg.loss)

    def step(state: State, rows: losses.Rows) -> Metrics:
        train = state.train if state.optimizer.ema is None else state.optimizer.ema
        weights = compute_params(cfg.dtype, train, state.frozen)
        loss, metrics = losses.total(problem, weights, rows, losses.totals(rows), None)
        return {"loss": loss, **metrics}

    return step


def compute_params(dtype: str, train: Tree, frozen: Tree) -> Params:
    """Joins trained and frozen weights in the compute dtype."""
    return jax.tree.map(lambda w: w.astype(jnp.dtype(dtype)), optim.join(train, frozen))


def start(cfg: StepConfig, params: Params, trained: Tree) -> State:
    """Returns the state before the first step; jit it with the shardings of `place`."""
    train, frozen = optim.split(params, trained)
    train = jax.tree.map(lambda w: w.astype(jnp.float32), train)
    frozen = jax.tree.map(lambda w: w.astype(jnp.dtype(cfg.dtype)), frozen)
    return State(train, frozen, optim.init(cfg.optimizer, train))


def place(cfg: StepConfig, shapes: Params, words: Tree, trained: Tree, mesh: partition.AnyMesh) -> tuple[State, State]:
    """Returns shapes and shardings of the whole state: moments and averages lie where their weights lie."""
    state = jax.eval_shape(lambda params: start(cfg, params, trained), shapes)
    placed = partition.shardings(shapes, words, mesh)
    return state, partition.follow(state, shapes, placed, mesh)


def compile_step(cfg: StepConfig, placed: State, mesh: partition.AnyMesh) -> Any:
    """Returns the jitted step on a mesh; the state it is given is consumed."""
    rows = meshes.rows_sharding(mesh)
    return jax.jit(make(cfg), in_shardings=(placed, rows), out_shardings=(placed, None), donate_argnums=0)


def compile_evaluate(cfg: StepConfig, placed: State, mesh: partition.AnyMesh) -> Any:
    """Returns the jitted validation loss on a mesh."""
    return jax.jit(evaluate(cfg), in_shardings=(placed, meshes.rows_sharding(mesh)))


def rows_of(batch: batches.Batch) -> losses.Rows:
    """Takes the fields of a host batch that the device computes with."""
    return losses.Rows(**{name: getattr(batch, name) for name in losses.Rows._fields})
