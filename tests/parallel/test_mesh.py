import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from molmoact2_jax.parallel import mesh


def slices(*indices):
    return [types.SimpleNamespace(slice_index=i) for i in indices]


def test_one_axis_takes_the_devices_that_are_left():
    assert mesh.sizes(mesh.MeshConfig(data=2, fsdp=-1, tensor=2), 16) == (2, 4, 2)
    assert mesh.sizes(mesh.MeshConfig(data=-1, fsdp=4, tensor=1), 8) == (2, 4, 1)
    assert mesh.sizes(mesh.MeshConfig(), 1) == (1, 1, 1)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (mesh.MeshConfig(data=3), "needs a multiple of 3 devices, but there are 8"),
        (mesh.MeshConfig(data=2, fsdp=2, tensor=1), "data=2 x fsdp=2 x tensor=1 needs 4 devices, but there are 8"),
        (mesh.MeshConfig(data=-1, fsdp=-1), "at most one -1"),
        (mesh.MeshConfig(tensor=0), "expected positive sizes"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        mesh.sizes(cfg, 8)


def test_axes_are_automatic_and_tensor_neighbours_are_adjacent():
    built = mesh.build(mesh.MeshConfig(data=2, fsdp=2, tensor=2))
    assert built.axis_names == ("data", "fsdp", "tensor") and set(built.axis_types) == {AxisType.Auto}
    ids = np.vectorize(lambda d: d.id)(built.devices)
    np.testing.assert_array_equal(ids[..., 1] - ids[..., 0], 1)


def test_slices_lie_along_data_then_fsdp_and_never_along_tensor():
    assert mesh._outer((4, 2, 2), 2) == (2, 1, 1)
    assert mesh._outer((1, 8, 2), 2) == (1, 2, 1)
    with pytest.raises(ValueError, match=r"tensor must not cross slices\. Set data to 2"):
        mesh.build(mesh.MeshConfig(data=1, fsdp=1, tensor=4), slices(0, 0, 1, 1))


def test_an_abstract_mesh_needs_no_devices():
    made = mesh.abstract(mesh.MeshConfig(fsdp=-1, tensor=4), 256)
    assert dict(made.shape) == {"data": 1, "fsdp": 64, "tensor": 4}


def test_a_batch_that_does_not_divide_the_mesh_is_refused_with_the_next_sizes():
    built = mesh.build(mesh.MeshConfig(data=2, fsdp=2, tensor=2))
    mesh.check_rows(built, 8)
    with pytest.raises(ValueError, match=r"10 rows, expected a multiple of data x fsdp = 4 .* Use 8 or 12 rows"):
        mesh.check_rows(built, 10)


@pytest.mark.parametrize("cfg", [mesh.MeshConfig(), mesh.MeshConfig(data=2, fsdp=2, tensor=2)])
def test_assembling_keeps_rows_in_order(cfg):
    built = mesh.build(cfg)
    rows = np.arange(16 * 3).reshape(16, 3)
    np.testing.assert_array_equal(mesh.rows_here(built, 16), np.arange(16))
    whole = mesh.assemble({"x": rows, "y": rows[:, 0]}, built, 16)
    np.testing.assert_array_equal(whole["x"], rows)
    np.testing.assert_array_equal(whole["y"], rows[:, 0])
    assert whole["x"].sharding == mesh.rows_sharding(built)
    shards = {s.data.shape[0] for s in whole["x"].addressable_shards}
    assert shards == {16 // (built.shape["data"] * built.shape["fsdp"])}


def test_assembled_rows_meet_a_sharded_computation():
    built = mesh.build(mesh.MeshConfig(fsdp=4, tensor=2))
    x = mesh.assemble(np.arange(8.0, dtype=np.float32), built, 8)
    assert float(jax.jit(lambda v: v.sum())(x)) == 28
