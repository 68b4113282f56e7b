import dataclasses

import jax
import numpy as np
import pytest

from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.parallel import partition
from molmoact2_jax.train import memory, recipe, setup

ROBOTS = [dict(path="nowhere", tag="libero")]


def prepare(preset, rows, mesh=None, loss=None, remat="full", **changes):
    policies = {f"remat_{tower}": remat for tower in ("vit", "llm", "expert")}
    table = dict(
        run_dir="x", steps=1000, batch_size=rows, model=dict(sizes=preset), data=dict(robots=ROBOTS),
        loss=policies | (loss or {}), mesh=dict(fsdp=1),
    )  # fmt: skip
    return setup.prepare(recipe.build(table | changes), jax.devices()[:1], mesh=mesh)


def abstract(preset, rows, devices, **changes):
    return prepare(preset, rows, meshes.abstract(meshes.MeshConfig(), devices), **changes)


def assert_near_the_compiler(made):
    _, needs = memory.compiled(made)
    estimated = sum(memory.model(made).values())
    assert abs(estimated / needs.total - 1) < 0.15, (memory.model(made), needs)


def test_the_bytes_of_the_bench_step_are_within_15_percent_of_the_compiler():
    assert_near_the_compiler(prepare("bench", 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (2, dict()),
        (4, dict(dtype="float32")),
        (1, dict(remat="dots")),
        (1, dict(remat="dots", dtype="float32")),
        (1, dict(remat="none")),
        (2, dict(remat="none", dtype="float32")),
        (2, dict(dtype="float32", data=dict(robots=ROBOTS, crops=1))),
        (2, dict(dtype="float32", data=dict(robots=ROBOTS, tokens=1050))),
        (1, dict(lora=dataclasses.asdict(memory.ADAPTED))),
    ],
)
def test_so_they_are_for_other_batches_policies_and_rows(rows, changes):
    assert_near_the_compiler(prepare("bench", rows, **changes))


def test_a_master_has_two_moments_and_a_gradient():
    found = memory.model(prepare("tiny", 1))
    assert found["parameters"] == found["gradients"] and found["moments"] == 2 * found["parameters"] + 12  # 3 counters
    assert set(found) == set(memory.KINDS)


def test_activations_grow_with_the_rows_of_a_device_and_not_with_other_devices():
    one, two = (memory.model(abstract("tiny", rows, 1)) for rows in (1, 2))
    spread = memory.model(abstract("tiny", 16, 8))
    for kind in ("saved activations", "working set", "batch"):
        assert two[kind] == 2 * one[kind] == spread[kind]
    assert spread["parameters"] < one["parameters"]


def test_accumulation_trades_activations_for_a_second_gradient():
    plain, sliced = (memory.model(prepare("tiny", 8, accumulation=n)) for n in (1, 4))
    assert sliced["working set"] * 4 == plain["working set"] and sliced["gradients"] == 2 * plain["gradients"]


def test_the_less_is_recomputed_the_more_is_saved():
    full, dots, none = (
        memory.model(prepare("bench", 1, remat=r))["saved activations"] for r in ("full", "dots", "none")
    )
    assert full < dots < none


def test_what_is_not_trained_needs_no_gradient_and_saves_nothing():
    full = prepare("4b", 1)
    lora, expert = (setup.prepare(memory.mode(full.recipe, name), jax.devices()[:1]) for name in ("lora", "expert"))
    sums = [sum(memory.model(made).values()) for made in (full, lora, expert)]
    assert sums[0] > sums[1] > sums[2]
    assert memory.model(full)["parameters"] + memory.model(full)["moments"] > 60e9  # 12 bytes a weight
    with pytest.raises(ValueError, match="mode 'half'"):
        memory.mode(full.recipe, "half")


def test_the_largest_batch_fits_and_its_double_does_not():
    made, limit = prepare("bench", 1), 8e9
    rows = memory.largest_batch(made, limit)
    used = [
        sum(memory.model(dataclasses.replace(made, recipe=dataclasses.replace(made.recipe, batch_size=n))).values())
        for n in (rows, 2 * rows)
    ]
    assert used[0] <= memory.HEADROOM * limit < used[1]
    assert memory.largest_batch(made, 1e9) == 0


@pytest.mark.parametrize("devices", [8, 64])
def test_the_4b_post_training_step_lowers_with_every_large_parameter_sharded(devices):
    loss = dict(num_samples=4, insulate=True)
    made = abstract("4b", 128, devices, loss=loss, embedding="added_tokens")
    assert partition.unsharded(made.state, made.placed) == []
    assert "stablehlo" in memory.lower(made, "tpu").as_text()
    shards = memory.shard_bytes(made.state.train, made.placed.train)
    whole = sum(x.nbytes if hasattr(x, "nbytes") else x.size * 4 for x in jax.tree.leaves(made.state.train))
    np.testing.assert_allclose(shards * devices, whole, rtol=0.01)
