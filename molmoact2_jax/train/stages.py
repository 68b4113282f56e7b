"""How a checkpoint enters the next stage of training: what fits passes through, what is new is made and named.

Source: training.md 1.4. Rows of added tokens, and action channels beyond those of the checkpoint, are drawn from
N(mean_j, std_j) of each feature j over the existing ones; a missing expert or gate starts as a fresh one.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax import config, presets
from molmoact2_jax.checkpoint import runs, storage
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import params as params_lib
from molmoact2_jax.nn import paths
from molmoact2_jax.nn.params import Params
from molmoact2_jax.train import vocabulary
from molmoact2_jax.train.recipe import ModelChoice

Place = Callable[[Params, Any], Any]  # (shapes, words of their axes) -> shardings
OPTIONAL = ("expert", "gate")  # towers that a checkpoint may lack

# leaf -> axis, and what maps its entries
RESIZED: dict[str, tuple[int, Callable[[ModelConfig, ModelConfig], vocabulary.Rows]]] = {
    "llm/embedding/table": (0, vocabulary.table_rows),
    "llm/head/kernel": (1, vocabulary.table_rows),
    "llm/embedding/extra": (0, vocabulary.image_rows),
    "expert/embed/kernel": (0, vocabulary.action_channels),
    "expert/final/kernel": (1, vocabulary.action_channels),
    "expert/final/kernel_bias": (0, vocabulary.action_channels),
}


class Entry(NamedTuple):
    """What has to be made: leaves to initialise, leaves to resize with the map of an axis, and lines that say why."""

    fresh: tuple[str, ...]
    resized: Mapping[str, vocabulary.Rows]
    notes: tuple[str, ...]


def target_config(choice: ModelChoice) -> ModelConfig:
    """Returns the model that a run trains.

    Raises:
      ValueError: neither sizes nor weights are named or there, or an override names no field.
    """
    source = choice.sizes or choice.init_from
    if source is None:
        raise ValueError("model: neither sizes nor init_from, expected one. Name a preset or a checkpoint.")
    exists = storage.path(source).exists()
    if not choice.sizes and not exists:
        raise ValueError(
            f"model.init_from: {source!r} is no directory, expected a checkpoint. Correct the path, or name "
            "model.sizes=4b to plan without the weights."
        )
    made = runs.read_model(source) if exists else presets.preset(source)
    return _replaced(made, choice.overrides, "model.overrides")


def _replaced(node: Any, values: Mapping[str, Any], where: str) -> Any:
    """Replaces fields of a dataclass; a mapping replaces fields of the part it names."""
    known = {f.name for f in dataclasses.fields(node)}
    changed = {}
    for name, value in values.items():
        if name not in known:
            near = config.near(name, known)
            raise ValueError(f"{where}.{name}: no such field, expected one of {sorted(known)}.{near}")
        part = getattr(node, name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(part):
            value = _replaced(part, value, f"{where}.{name}")
        changed[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(node, **changed)


def compare(cfg: ModelConfig, origin: ModelConfig | None) -> Entry:
    """Decides what a checkpoint gives to a model, from the sizes of both alone.

    Args:
      cfg: the model to train.
      origin: that of the checkpoint; None where there is no checkpoint.

    Raises:
      ValueError: the checkpoint is of another model; every leaf that does not fit is listed.
    """
    wanted, found = _shapes(cfg), {} if origin is None else _shapes(origin)
    towers = {name.split("/")[0] for name in found}
    fresh = [n for n in wanted if not found or (n.split("/")[0] in OPTIONAL and n.split("/")[0] not in towers)]
    maps = {} if origin is None else _maps(origin, cfg, found, wanted)
    wrong = [f"{n} {found[n]} is not in the model" for n in found if n not in wanted]
    wrong += [f"{n} {wanted[n]} is not in the checkpoint" for n in wanted if n not in found and n not in fresh]
    wrong += [
        f"{n} is {found[n]}, expected {wanted[n]}"
        for n in found
        if n in wanted and n not in maps and found[n] != wanted[n]
    ]
    if wrong:
        lines = "\n  ".join(wrong)
        raise ValueError(
            f"init_from: {len(wrong)} leaves of the checkpoint do not fit the model. Nothing was loaded; take its "
            f"sizes, or another checkpoint.\n  {lines}"
        )
    why = "the checkpoint has none" if found else "there is no checkpoint"
    notes = [f"{tower}: initialised, {why}" for tower in sorted({n.split("/")[0] for n in fresh})]
    notes += [_describe(name, rows) for name, rows in maps.items()]
    return Entry(tuple(fresh), maps, tuple(notes))


def _describe(name: str, rows: vocabulary.Rows) -> str:
    if not rows.new:
        return f"{name}: rows moved to the ids of the model"
    return f"{name}: {', '.join(rows.new)} drawn around the {rows.base} that the checkpoint has"


def _shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes, _ = molmoact2.abstract(cfg)
    return {name: x.shape for name, x in zip(paths.names(shapes), jax.tree.leaves(shapes), strict=True)}


def _maps(
    before: ModelConfig, now: ModelConfig, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, vocabulary.Rows]:
    """Maps the axes that may grow, for leaves whose other axes agree and whose entries are not all in place."""
    maps = {}
    for name, (axis, rows_of) in RESIZED.items():
        old, new = found.get(name), wanted.get(name)
        if (
            old is None
            or new is None
            or old[axis] > new[axis]
            or np.delete(old, axis).tolist() != np.delete(new, axis).tolist()
        ):
            continue
        rows = rows_of(before, now)
        if not (rows.same and old == new):
            maps[name] = rows
    return maps


def enter(
    cfg: ModelConfig, origin: ModelConfig | None, source: Params, key: jax.Array, place: Place | None = None
) -> tuple[Params, tuple[str, ...]]:
    """Brings the weights of a checkpoint into a model that may have more than it.

    Args:
      cfg: the model to train.
      origin: the model of the checkpoint, None without one.
      source: its weights, empty without one; leaves that fit are passed through, not copied.
      key: of what is drawn.
      place: gives the shardings of new leaves, which are made on their devices; None takes the default device.

    Returns:
      The weights of `cfg`, and one line for each part that is new.

    Raises:
      ValueError: as for `compare`.
    """
    entry = compare(cfg, origin)
    shapes, words = molmoact2.abstract(cfg)
    placed = (
        None if place is None else dict(zip(paths.names(shapes), jax.tree.leaves(place(shapes, words)), strict=True))
    )
    leaves = {paths.name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}
    leaves |= _initialised(cfg, key, entry.fresh, placed)
    for name, rows in entry.resized.items():
        fold = jax.random.fold_in(key, zlib.crc32(name.encode()))
        leaves[name] = _resized(leaves[name], rows, RESIZED[name][0], fold, None if placed is None else placed[name])
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[paths.name(path)], shapes), entry.notes


def _initialised(
    cfg: ModelConfig, key: jax.Array, names: tuple[str, ...], placed: Mapping[str, Any] | None
) -> dict[str, jax.Array]:
    """Initialises the named leaves alone; the compiler drops the rest."""
    if not names:
        return {}

    def init(key: jax.Array) -> dict[str, jax.Array]:
        values, _ = params_lib.unbox(molmoact2.init(cfg, key))
        leaves = {paths.name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(values)}
        return {name: leaves[name] for name in names}

    return jax.jit(init, out_shardings=None if placed is None else {name: placed[name] for name in names})(key)


def _resized(old: jax.Array, rows: vocabulary.Rows, axis: int, key: jax.Array, placed: Any) -> jax.Array:
    """Moves entries of an axis to their places and draws the new ones, per feature, around those there are."""

    def make(old: jax.Array, key: jax.Array) -> jax.Array:
        known = jax.lax.slice_in_dim(old, 0, rows.base, axis=axis).astype(jnp.float32)
        mean, std = known.mean(axis, keepdims=True), known.std(axis, keepdims=True)
        kept = jnp.take(old, np.maximum(rows.source, 0), axis=axis)
        drawn = mean + std * jax.random.normal(key, kept.shape)
        column = [-1 if i == axis else 1 for i in range(old.ndim)]
        return jnp.where((rows.source >= 0).reshape(column), kept, drawn.astype(old.dtype))

    return jax.jit(make, out_shardings=placed)(old, key)
