"""From a run's description to everything its loop needs: model, mesh, sharded state, compiled functions."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from molmoact2_jax.checkpoint import hf, orbax, runs, storage
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import lora, paths
from molmoact2_jax.nn.params import Params
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.parallel import partition
from molmoact2_jax.train import optim, stages, step, vocabulary
from molmoact2_jax.train.recipe import TrainConfig

Tree = Any
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the loop works with.

    Attributes:
      recipe, model: the run and its network.
      cfg: what the compiled step depends on.
      shapes, words, trained: of all weights, LoRA included: shapes, words of their axes, whether they train.
      mesh: devices; state, placed: shapes and shardings of the whole state.
    """

    recipe: TrainConfig
    model: ModelConfig
    cfg: step.StepConfig
    shapes: Params
    words: Tree
    trained: Tree
    mesh: Any
    state: step.State
    placed: step.State


def prepare(recipe: TrainConfig, devices: Any = None, *, mesh: partition.AnyMesh | None = None) -> Setup:
    """Checks a run against its model and the devices, without touching a weight.

    Args:
      recipe: the run.
      devices: all devices of the run; None takes those of JAX.
      mesh: instead of devices, to plan for some that are not there (`mesh.abstract`).

    Raises:
      ValueError: what does not fit, in words.
    """
    model = stages.target_config(recipe.model)
    if model.gate and recipe.loss.insulate:
        _log.warning(
            "loss.insulate: no gradient reaches the depth gate, since it comes before insulation, as released. It "
            "stays as it is; set loss.insulate=False to train it, or leave model.overrides.gate out to do without it"
        )
    shapes, words = molmoact2.abstract(model)
    trained = optim.trainable(shapes, recipe.frozen, recipe.embedding)
    if recipe.lora is not None:
        attach = functools.partial(lora.attach, words=words, cfg=recipe.lora, key=jax.random.key(0))
        shapes, words = jax.eval_shape(attach, shapes), lora.attach_words(words, recipe.lora)
        trained = _lora_trained(shapes, trained)
    mesh = meshes.build(recipe.mesh, devices) if mesh is None else mesh
    meshes.check_rows(mesh, recipe.batch_size // recipe.accumulation)
    optim.check(recipe.optimizer, recipe.steps)
    cfg = step.StepConfig(
        model=model, loss=recipe.loss, optimizer=recipe.optimizer, steps=recipe.steps,
        accumulation=recipe.accumulation, dtype=recipe.dtype, augment=recipe.augment, seed=recipe.seed,
        added_rows=_added_rows(recipe, model),
    )  # fmt: skip
    state, placed = step.place(cfg, shapes, words, trained, mesh)
    return Setup(recipe, model, cfg, shapes, words, trained, mesh, state, placed)


def _lora_trained(shapes: Params, plain: Tree) -> Tree:
    """Marks low-rank changes and whatever is outside decoder and vision; their other weights stay as they are."""

    def one(path: Any, node: Any, mark: bool) -> Any:
        if isinstance(node, lora.LoRA):
            return dataclasses.replace(node, base=False, down=True, up=True)
        return mark and paths.name(path).split("/")[0] in ("expert", "gate")

    return jax.tree_util.tree_map_with_path(one, shapes, plain, is_leaf=lambda n: isinstance(n, lora.LoRA))


def _added_rows(recipe: TrainConfig, model: ModelConfig) -> tuple[int, int] | None:
    """The rows of added tokens are those from the first setup token to the end of the base table."""
    if not optim.EMBEDDING[recipe.embedding].added_rows_only:
        return None
    return vocabulary.added(model)[0], model.llm.vocab_size


def initial_state(setup: Setup) -> step.State:
    """Loads or initialises the weights, leaf by leaf onto their devices, and starts the optimizer."""
    key = jax.random.key(setup.recipe.seed)
    params = _weights(setup, key)
    if setup.recipe.lora:
        _, words = molmoact2.abstract(setup.model)
        make = lambda p: lora.attach(p, words, setup.recipe.lora, key)  # noqa: E731
        params = jax.jit(make, out_shardings=_full(setup), donate_argnums=0)(params)
    begin = lambda p: step.start(setup.cfg, p, setup.trained)  # noqa: E731
    return jax.jit(begin, out_shardings=setup.placed, donate_argnums=0)(params)


def _full(setup: Setup) -> Tree:
    """Returns the shardings of all weights."""
    return partition.shardings(setup.shapes, setup.words, setup.mesh)


def _weights(setup: Setup, key: jax.Array) -> Params:
    source, place = setup.recipe.model.init_from, functools.partial(partition.shardings, mesh=setup.mesh)
    origin: ModelConfig | None = None
    params: Params = {}
    if source is not None:
        origin = runs.read_model(source)
        stages.compare(setup.model, origin)  # refuses before anything large is read
        shapes, words = molmoact2.abstract(origin)
        where = dict(zip(paths.names(shapes), jax.tree.leaves(place(shapes, words)), strict=True))
        if runs.is_run(source):
            _, params = runs.load(source, _dtypes(setup), place=place)
        else:
            _, params = hf.load(source, _dtypes(setup), lambda name, shape: where[name])
    params, notes = stages.enter(setup.model, origin, params, key, place)
    for note in notes:
        _log.info("init_from: %s", note)
    return params


def _dtypes(setup: Setup) -> Any:
    """Returns what each leaf is loaded as: trained ones in float32, frozen ones in the compute dtype."""
    marks = dict(zip(paths.names(setup.trained), jax.tree.leaves(setup.trained), strict=True))

    def dtype(name: str) -> Any:
        trained = marks.get(name, marks.get(f"{name}/base", True))
        return jnp.dtype(jnp.float32 if trained else setup.cfg.dtype)

    return dtype


def restore(setup: Setup, checkpoints: orbax.Checkpoints) -> tuple[int, step.State, dict[str, Any]] | None:
    """Reads the newest intact checkpoint onto this mesh: finished steps, state, position in the data."""
    targets = partition.targets(setup.state, setup.placed)
    wanted = saved(targets, {}, {})
    found = checkpoints.restore(wanted.params, wanted.optimizer)
    if found is None:
        return None
    number, read = found
    train, frozen = optim.split(read.params, setup.trained)
    optimizer = read.optimizer
    if optimizer.ema is not None:
        train, optimizer = optimizer.ema, optimizer._replace(ema=train)
    return number, step.State(train, frozen, optimizer), dict(read.loader)


def saved(state: step.State, position: dict[str, Any], meta: dict[str, Any]) -> orbax.Saved:
    """Returns what a checkpoint of a state holds: as parameters those to use, averaged where an average is kept.

    The masters then stand in the place of the average among the optimizer's arrays.
    """
    train, optimizer = state.train, state.optimizer
    if optimizer.ema is not None:
        train, optimizer = optimizer.ema, optimizer._replace(ema=train)
    return orbax.Saved(optim.join(train, state.frozen), optimizer, position, meta)


def side_directory(recipe: TrainConfig) -> pathlib.Path:
    """Returns where tokenizer, statistics and codec of a run come from.

    Raises:
      ValueError: the recipe names no directory that could have them.
    """
    for name in (recipe.model.side_files, recipe.model.init_from, recipe.model.sizes):
        if name is not None and storage.path(name).is_dir():
            return runs.side_directory(name)
    raise ValueError("model.side_files: none, expected a directory with tokenizer.json and norm_stats.json.")
