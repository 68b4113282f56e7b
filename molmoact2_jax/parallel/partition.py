"""From words of dimensions to mesh axes: the one table that shards weights, optimizer state, cache and activations."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from molmoact2_jax.nn import paths
from molmoact2_jax.parallel import mesh as meshes

_log = logging.getLogger(__name__)

Tree = Any
AnyMesh = Mesh | AbstractMesh

TABLE: dict[str, tuple[str, ...]] = {
    "batch": meshes.ROWS,
    "embed": ("fsdp",),
    "features": ("fsdp",),
    "out": ("fsdp",),
    "context_embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "context_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}
LARGE = 1 << 20  # bytes; a weight from here on must be sharded over fsdp wherever one of its axes allows it

_ACTIVATIONS = tuple((word, axes) for word, axes in TABLE.items() if axes != ("fsdp",))


def spec(shape: tuple[int, ...], words: tuple[str, ...], mesh: AnyMesh, *, itemsize: int = 4) -> PartitionSpec:
    """Chooses the mesh axes of one array.

    Each dimension takes the mesh axes of its word if they are free and divide it. An array of `LARGE` bytes that fsdp
    then does not shard gives fsdp to the largest dimension it divides, in addition to what that one has; never to
    `layers`, which a loop reads one by one.

    Args:
      shape: sizes of the dimensions.
      words: one word per dimension; a word outside the table is not sharded.
      mesh: with the axes of `mesh.AXES`.
      itemsize: bytes of an element as it is stored for training.
    """
    if len(shape) != len(words):
        raise ValueError(
            f"partition.spec: shape {shape} has words {words}, expected one word per dimension. Name each."
        )
    axes: list[tuple[str, ...]] = []
    for size, word in zip(shape, words, strict=True):
        wanted = tuple(a for a in TABLE.get(word, ()) if mesh.shape[a] > 1 and not any(a in used for used in axes))
        axes.append(wanted if wanted and size % _extent(mesh, wanted) == 0 else ())
    if _needs_fsdp(mesh, axes) and math.prod(shape) * itemsize >= LARGE:
        fits = [
            i for i, word in enumerate(words) if word != "layers" and shape[i] % _extent(mesh, (*axes[i], "fsdp")) == 0
        ]
        if fits:
            best = max(fits, key=lambda i: (shape[i] // _extent(mesh, axes[i]), -i))
            axes[best] = (*axes[best], "fsdp")
    return PartitionSpec(*(a[0] if len(a) == 1 else a or None for a in axes))


def _extent(mesh: AnyMesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _needs_fsdp(mesh: AnyMesh, axes: list[tuple[str, ...]]) -> bool:
    return mesh.shape["fsdp"] > 1 and not any("fsdp" in used for used in axes)


def shardings(shapes: Tree, words: Tree, mesh: AnyMesh) -> Tree:
    """Gives every array its sharding.

    Args:
      shapes: tree of arrays or `ShapeDtypeStruct`s.
      words: tree of the same structure with tuples of words.
      mesh: with the axes of `mesh.AXES`.

    Returns:
      A tree of `NamedSharding`.
    """
    return jax.tree.map(lambda x, w: NamedSharding(mesh, spec(x.shape, w, mesh)), shapes, words)


def follow(state: Tree, shapes: Tree, placed: Tree, mesh: AnyMesh) -> Tree:
    """Shards a state that holds copies of weights (moments, averages) like the weights; the rest is replicated.

    A leaf of the state belongs to the weight whose path ends its own path and whose shape it has.

    Args:
      state: tree of arrays or `ShapeDtypeStruct`s, such as an optimizer state.
      shapes: tree of the weights, or of their `ShapeDtypeStruct`s.
      placed: tree of `NamedSharding` for `shapes`.
      mesh: with the axes of `mesh.AXES`.
    """
    leaves = zip(paths.names(shapes), jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True)
    known = {name: (x.shape, sharding) for name, x, sharding in leaves}
    replicated = NamedSharding(mesh, PartitionSpec())

    def one(path: Any, x: Any) -> NamedSharding:
        parts = paths.name(path).split("/")
        for start in range(len(parts)):
            shape, sharding = known.get("/".join(parts[start:]), (None, replicated))
            if shape == x.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(one, state)


def targets(shapes: Tree, placed: Tree) -> Tree:
    """Joins shapes and shardings into `ShapeDtypeStruct`s, for restoring and for lowering."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)


def unsharded(shapes: Tree, placed: Tree, limit: int = LARGE) -> list[str]:
    """Lists the paths of arrays of at least `limit` bytes that are whole on every device."""
    named = zip(paths.names(shapes), jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True)
    return [name for name, x, s in named if x.size * x.dtype.itemsize >= limit and s.is_fully_replicated]


def table(shapes: Tree, placed: Tree) -> str:
    """Describes where the weights lie, largest first: path, shape, spec, megabytes per device."""
    named = zip(paths.names(shapes), jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True)
    rows = [(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, n, x.shape, s.spec) for n, x, s in named]
    lines = [f"{size / 1e6:10.2f} MB  {name}  {shape}  {where}" for size, name, shape, where in sorted(rows)[::-1]]
    return "\n".join([*lines, f"{sum(row[0] for row in rows) / 1e6:10.2f} MB  per device in all"])


@contextlib.contextmanager
def activate(mesh: AnyMesh) -> Iterator[None]:
    """Makes `nn.with_logical_constraint` of the model shard activations over `mesh`.

    Activations are spread by rows, heads, hidden units and vocabulary; the width stays whole, because fsdp shards only
    what is stored.
    """
    scope = jax.set_mesh(mesh) if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh(mesh)
    with scope, nn.logical_axis_rules(_ACTIVATIONS):
        yield


def log_table(shapes: Tree, placed: Tree) -> None:
    """Logs the table of shardings, and a warning for every large array that no axis of the mesh divides."""
    _log.info("parameters:\n%s", table(shapes, placed))
    for name in unsharded(shapes, placed):
        _log.warning("partition: %s is whole on every device; no axis of the mesh divides it", name)
