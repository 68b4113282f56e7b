"""How a checkpoint enters the next stage of training: what fits passes through, what is new is initialised and named."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from molmoact2_jax import presets
from molmoact2_jax.checkpoint import runs
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import params as params_lib
from molmoact2_jax.nn import paths
from molmoact2_jax.nn.params import Params
from molmoact2_jax.train.recipe import ModelChoice

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


def target_config(choice: ModelChoice) -> ModelConfig:
    """Returns the model that a run trains.

    Raises:
      ValueError: neither sizes nor weights are named, or an override names no field.
    """
    source = choice.sizes or choice.init_from
    if source is None:
        raise ValueError("model: neither sizes nor init_from, expected one. Name a preset or a checkpoint.")
    made = runs.read_model(source) if pathlib.Path(source).exists() else presets.preset(source)
    for name, value in choice.overrides.items():
        made = _replaced(made, name.split("."), value, name)
    return made


def _replaced(node: Any, names: list[str], value: Any, where: str) -> Any:
    known = [f.name for f in dataclasses.fields(node)]
    if names[0] not in known:
        raise ValueError(f"model.overrides: {where!r} names no field, expected one of {known}.")
    if len(names) > 1:
        value = _replaced(getattr(node, names[0]), names[1:], value, where)
    return dataclasses.replace(node, **{names[0]: tuple(value) if isinstance(value, list) else value})


def enter(
    cfg: ModelConfig, source: Params, key: jax.Array, sharding: Sharding | None = None
) -> tuple[Params, list[str]]:
    """Brings the weights of a checkpoint into a model that may have more than it.

    Args:
      cfg: the model to train.
      source: weights of the checkpoint; leaves that fit are passed through, not copied.
      key: of what is initialised.
      sharding: `(path, shape) -> Sharding` of new leaves; None puts them on the default device.

    Returns:
      The weights of `cfg`, and one line for each part that is new.

    Raises:
      ValueError: leaves of the checkpoint that `cfg` lacks or has in another shape; all are listed.
    """
    shapes, _ = molmoact2.abstract(cfg)
    found = {paths.name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}
    wanted = {paths.name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    wrong = [f"{name} {leaf.shape}" for name, leaf in found.items() if wanted.get(name) != leaf.shape]
    if wrong:
        raise ValueError(f"init_from: {wrong} do not fit the model. Take its sizes, or another checkpoint.")
    fresh = _initialised(cfg, key, sorted(wanted.keys() - found.keys()), sharding)
    parts = sorted({"/".join(name.split("/")[:1]) for name in fresh})
    notes = [f"{part}: initialised, the checkpoint has none" for part in parts]
    both = {**found, **fresh}
    return jax.tree_util.tree_map_with_path(lambda path, _: both[paths.name(path)], shapes), notes


def _initialised(cfg: ModelConfig, key: jax.Array, names: list[str], sharding: Sharding | None) -> dict[str, jax.Array]:
    """Initialises the named leaves alone; the compiler drops the rest."""
    if not names:
        return {}

    def init(key: jax.Array) -> dict[str, jax.Array]:
        values, _ = params_lib.unbox(molmoact2.init(cfg, key))
        leaves = jax.tree_util.tree_leaves_with_path(values)
        return {paths.name(path): leaf for path, leaf in leaves if paths.name(path) in names}

    shapes = jax.eval_shape(init, key)
    placed = None if sharding is None else {name: sharding(name, x.shape) for name, x in shapes.items()}
    return jax.jit(init, out_shardings=placed)(key)
