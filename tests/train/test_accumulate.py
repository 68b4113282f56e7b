import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.parallel import mesh
from molmoact2_jax.train import accumulate

ROWS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


def sums(batch):
    return {"value": jnp.sum(batch["x"] ** 2), "rows": batch["x"].shape[0], "by": batch["x"].sum(axis=0)}


@pytest.mark.parametrize("num_slices", [1, 2, 4, 12])
def test_slices_sum_to_the_whole(num_slices):
    got = jax.jit(lambda b: accumulate.accumulate(sums, b, num_slices))({"x": ROWS})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, sums({"x": ROWS}))


def test_sums_are_float32_even_of_bfloat16():
    got = accumulate.accumulate(lambda b: b.astype(jnp.bfloat16).sum(), jnp.ones((512, 2)), 512)
    assert got.dtype == jnp.float32 and got == 1024  # bfloat16 would stop counting at 256


def test_a_slice_keeps_each_device_on_its_own_rows():
    built = mesh.build(mesh.MeshConfig())
    batch = mesh.assemble(np.arange(32, dtype=np.float32), built, 32)
    step = jax.jit(lambda b: accumulate.accumulate(lambda x: jnp.sum(x**2), b, 4))
    assert step(batch) == (np.arange(32) ** 2).sum()
    assert "all-to-all" not in step.lower(batch).compile().as_text()


def test_slices_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(ValueError, match="12 rows in 5 slices"):
        accumulate.accumulate(sums, {"x": ROWS}, 5)
