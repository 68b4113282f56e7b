"""A training run, in a directory or at an address: what it was made of, its checkpoints, its model's side files."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import tempfile
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from molmoact2_jax import config
from molmoact2_jax.checkpoint import config_json, hf, orbax, storage
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import lora, paths
from molmoact2_jax.nn.params import Params

Place = Callable[[Params, Any], Any]  # (shapes, words of their axes) -> shardings

RECIPE, MODEL, SIDE, CHECKPOINTS = "recipe.json", "model.json", "side", "checkpoints"
QUARANTINE = "quarantine.jsonl"  # damaged samples that the run has met


def is_run(directory: storage.Where) -> bool:
    """Whether a directory or an address is a run of ours."""
    return (storage.path(directory) / MODEL).is_file()


def describe(directory: storage.Path, recipe: dict[str, Any], cfg: ModelConfig, sides: pathlib.Path) -> None:
    """Writes what a run is made of; files that are there already stay."""
    if not storage.is_address(directory):
        directory.mkdir(parents=True, exist_ok=True)
        _copy_sides(sides, pathlib.Path(directory))
    elif not is_run(directory):  # the model is written last: with it, all side files are there
        _upload_sides(sides, directory)
    for name, value in ((RECIPE, recipe), (MODEL, dataclasses.asdict(cfg))):
        if not (directory / name).exists():
            (directory / name).write_text(json.dumps(value, indent=1) + "\n")


def _copy_sides(sides: pathlib.Path, directory: pathlib.Path) -> None:
    if (directory / SIDE).exists():
        return
    partial = directory / f"{SIDE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    hf.copy_side_files(sides, partial)
    partial.rename(directory / SIDE)


def _upload_sides(sides: pathlib.Path, address: storage.Path) -> None:
    with tempfile.TemporaryDirectory(prefix="molmoact2-") as folder:
        hf.copy_side_files(sides, pathlib.Path(folder))
        storage.copy(pathlib.Path(folder), address / SIDE)


def side_directory(directory: storage.Where) -> pathlib.Path:
    """Returns where the side files are of a run, or of a checkpoint in the released format; copied if at an address."""
    if is_run(directory):
        return storage.near(storage.path(directory) / SIDE)
    return storage.local(directory)


def read_recipe(directory: storage.Where) -> dict[str, Any] | None:
    """Returns the recipe of a run, or None where there is no run yet."""
    path = storage.path(directory) / RECIPE
    return json.loads(path.read_text()) if path.is_file() else None


def read_model(directory: storage.Where) -> ModelConfig:
    """Returns the model of a run, or of a checkpoint in the released format."""
    path = storage.path(directory) / MODEL
    if path.is_file():
        return config.build(ModelConfig, json.loads(path.read_text()), str(path))
    return config_json.load(storage.local(directory))


def load(
    directory: storage.Where, dtype: Any = jnp.float32, *, merge: bool = True, place: Place | None = None
) -> tuple[ModelConfig, Params]:
    """Loads the newest weights of a run.

    Args:
      directory: `run_dir`, a directory or an address.
      dtype: of the parameters, or a function from a path to it.
      merge: adds LoRA changes to their weights.
      place: gives the shardings, onto which the weights are read; None takes the default device.

    Raises:
      ValueError: the run has no intact checkpoint yet.
    """
    cfg, recipe = read_model(directory), read_recipe(directory) or {}
    plain, words = molmoact2.abstract(cfg)
    place = place or _on_one_device
    shapes, known = plain, words
    if recipe.get("lora"):
        attach = lora.LoRAConfig(**recipe["lora"])
        shapes = jax.eval_shape(lambda p: lora.attach(p, words, attach, jax.random.key(0)), plain)
        known = lora.attach_words(words, attach)

    def target(path: Any, x: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        name = paths.name(path).removesuffix("/base")
        kind = dtype(name) if isinstance(dtype, types.FunctionType) else dtype
        return jax.ShapeDtypeStruct(x.shape, kind, sharding=sharding)

    wanted = jax.tree_util.tree_map_with_path(target, shapes, place(shapes, known))
    params = orbax.read_params(storage.path(directory) / CHECKPOINTS, wanted)
    if not merge or not recipe.get("lora"):
        return cfg, params
    return cfg, jax.device_put(lora.merge(params), place(plain, words))


def _on_one_device(shapes: Params, words: Any) -> Params:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: one, shapes)
