"""Meshes of devices with the axes data, fsdp and tensor, and the part of a batch that each process feeds.

`data` holds copies of the weights, `fsdp` shards weights and batch, `tensor` shards heads, hidden units and vocabulary.
The last axis varies fastest over neighbouring devices, so `tensor` stays inside a host where it can.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes over which the rows of a batch are spread


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the axes; at most one is -1 and takes the devices that the others leave."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


def sizes(cfg: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Resolves the sizes of (data, fsdp, tensor) for a number of devices.

    Raises:
      ValueError: two sizes are -1, one is not positive, or they do not multiply to the number of devices.
    """
    given = tuple(getattr(cfg, axis) for axis in AXES)
    if any(size < 1 and size != -1 for size in given) or given.count(-1) > 1:
        raise ValueError(
            f"mesh: {_show(given)}, expected positive sizes and at most one -1, which takes the devices that are left."
        )
    known = math.prod(size for size in given if size != -1)
    fits = num_devices % known == 0 if -1 in given else num_devices == known
    if not fits:
        raise ValueError(
            f"mesh: {_show(given)} needs {'a multiple of ' if -1 in given else ''}{known} devices, but there are "
            f"{num_devices}. Change the sizes, or set one of them to -1 where they divide {num_devices}."
        )
    data, fsdp, tensor = (num_devices // known if size == -1 else size for size in given)
    return data, fsdp, tensor


def _show(given: tuple[int, ...]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in zip(AXES, given, strict=True))


def build(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays the devices (all, unless given) out as a mesh.

    Slices of TPUs, which only the slower network joins, are put side by side along `data`, or along `fsdp` where `data`
    cannot hold them.

    Raises:
      ValueError: as for `sizes`; or the slices fit neither axis.
    """
    devices = jax.devices() if devices is None else devices
    shape = sizes(cfg, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    types = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    outer = _outer(shape, slices)
    inner = tuple(size // count for size, count in zip(shape, outer, strict=True))
    grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def _outer(shape: tuple[int, int, int], slices: int) -> tuple[int, int, int]:
    """How many slices lie along each axis."""
    if shape[0] % slices == 0:
        return slices, 1, 1
    if shape[1] % slices == 0:
        return 1, slices, 1
    raise ValueError(
        f"mesh: {_show(shape)} over {slices} slices, expected data or fsdp to be a multiple of {slices}, because "
        f"tensor must not cross slices. Set data to {slices}."
    )


def abstract(cfg: MeshConfig, num_devices: int) -> AbstractMesh:
    """A mesh of devices that need not exist, for lowering and planning."""
    return AbstractMesh(sizes(cfg, num_devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def rows_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """How a batch lies on the mesh: its first axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def check_rows(mesh: Mesh | AbstractMesh, num_rows: int) -> None:
    """Refuses a global batch that cannot be spread evenly.

    Raises:
      ValueError: data x fsdp does not divide the number of rows.
    """
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    if num_rows % shards:
        raise ValueError(
            f"batch: {num_rows} rows, expected a multiple of data x fsdp = {shards} (mesh {dict(mesh.shape)}). "
            f"Use {max(1, num_rows // shards) * shards} or {(num_rows // shards + 1) * shards} rows, or move devices "
            "from fsdp to tensor."
        )


def rows_here(mesh: Mesh, num_rows: int) -> np.ndarray:
    """Lists the rows of the global batch that this process must feed, i64[R], ascending."""
    check_rows(mesh, num_rows)
    spans = rows_sharding(mesh).addressable_devices_indices_map((num_rows,)).values()
    return np.unique(np.concatenate([np.arange(num_rows)[span] for span in spans]))


def assemble(local: Any, mesh: Mesh, num_rows: int) -> Any:
    """Joins the rows that each process read into global arrays.

    Args:
      local: tree of arrays [R, ...], row j being row `rows_here(mesh, num_rows)[j]` of the global batch.
      mesh: where the arrays go.
      num_rows: rows of the global batch.

    Returns:
      The tree as arrays [num_rows, ...], sharded over data and fsdp.
    """
    place = {int(row): j for j, row in enumerate(rows_here(mesh, num_rows))}
    sharding = rows_sharding(mesh)

    def one(x: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            rows = range(num_rows)[index[0]]
            return x[place[rows[0]] : place[rows[0]] + len(rows)]

        return jax.make_array_from_callback((num_rows, *x.shape[1:]), sharding, shard)

    return jax.tree.map(one, local)
