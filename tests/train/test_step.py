import dataclasses

import jax
import numpy as np
import pytest

from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import lora
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.parallel import partition
from molmoact2_jax.train import losses, optim, step
from tests.train import small

LOSS = losses.LossConfig(num_samples=2, dropout=0.1, remat_vit="none", remat_llm="none", remat_expert="none")


def config(steps=20, **changes):
    base = step.StepConfig(
        small.model(), LOSS, optim.OptimConfig(warmup_steps=2), steps, dtype="float32", augment="none"
    )
    return dataclasses.replace(base, **changes)


def batch(seed=0, rows=8):
    rng = np.random.default_rng(seed)
    groups = [[small.example(rng, 14), small.example(rng, 10)] for _ in range(rows)]
    return small.pack(groups, 32)


def curve(cfg, sizes, batches, steps):
    """Trains on a mesh and returns its losses and final weights."""
    count = int(np.prod(sizes))
    mesh = meshes.build(meshes.MeshConfig(*sizes), jax.devices()[:count])
    shapes, words = molmoact2.abstract(cfg.model)
    trained = optim.trainable(shapes)
    with partition.activate(mesh):
        _, placed = step.place(cfg, shapes, words, trained, mesh)
        begin = jax.jit(lambda p: step.start(cfg, p, trained), out_shardings=placed)
        state, function = begin(small.weights(cfg.model)), step.compile_step(cfg, placed, mesh)
        found = []
        for i in range(steps):
            rows = jax.device_put(batches[i % len(batches)], meshes.rows_sharding(mesh))
            state, metrics = function(state, rows)
            found.append(float(metrics["loss"]))
    return np.array(found), jax.device_get(state.train)


def test_eight_devices_follow_one():
    batches = [batch(0), batch(1)]
    one, weights = curve(config(), (1, 1, 1), batches, 6)
    many, others = curve(config(), (2, 2, 2), batches, 6)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), others, weights)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2), (8, 1, 1)])
def test_twenty_steps_are_the_same_on_any_mesh(sizes):
    batches = [batch(0), batch(1)]
    one, _ = curve(config(), (1, 1, 1), batches, 20)
    many, _ = curve(config(), sizes, batches, 20)
    np.testing.assert_allclose(many, one, rtol=1e-5)


PROCESSES = """
import sys
import jax, numpy as np
from molmoact2_jax.models import molmoact2
from molmoact2_jax.parallel import mesh as meshes, partition, processes
from molmoact2_jax.train import losses, optim, step
sys.path.insert(0, sys.argv[1])
processes.start()
from tests.train import small, test_step as t
cfg = t.config()
mesh = meshes.build(meshes.MeshConfig(1, 4, 1))
shapes, words = molmoact2.abstract(cfg.model)
trained = optim.trainable(shapes)
with partition.activate(mesh):
    _, placed = step.place(cfg, shapes, words, trained, mesh)
    state = jax.jit(lambda p: step.start(cfg, p, trained), out_shardings=placed)(small.weights(cfg.model))
    function = step.compile_step(cfg, placed, mesh)
    for i in range(20):
        whole = t.batch(i % 2)
        mine = meshes.rows_here(mesh, 8)
        rows = meshes.assemble(jax.tree.map(lambda a: a[mine], whole), mesh, 8)
        state, metrics = function(state, rows)
        print(repr(float(metrics["loss"])))
"""


@pytest.mark.slow
def test_two_processes_follow_one(run_processes, request):
    one, _ = curve(config(), (1, 1, 1), [batch(0), batch(1)], 20)
    outputs = run_processes(PROCESSES, str(request.config.rootpath), num_processes=2, num_devices=2, timeout=900)
    for output in outputs:
        losses_seen = [float(line) for line in output.splitlines() if not line.startswith("[Gloo]")]
        np.testing.assert_allclose(losses_seen, one, rtol=1e-5)


def test_four_slices_take_the_step_of_one_batch():
    one, weights = curve(config(), (1, 1, 1), [batch(0)], 2)
    four, others = curve(config(accumulation=4), (1, 1, 1), [batch(0)], 2)
    np.testing.assert_allclose(four, one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), others, weights)


def test_low_rank_changes_start_as_nothing_and_merge_to_the_same_loss():
    cfg = small.model()
    _, words = molmoact2.abstract(cfg)
    params, rows = small.weights(cfg), batch(0, rows=2)
    chosen = lora.LoRAConfig(r"^llm/blocks/(q|k|v|o|up|gate|down)$|^vit/blocks/(q|up)$|^llm/head/kernel$", 4)
    attached = lora.attach(params, words, chosen, jax.random.key(0))
    loss = dataclasses.replace(LOSS, dropout=0.0)

    @jax.jit
    def value(tree):
        return losses.total(losses.Problem(cfg, loss), tree, rows, losses.totals(rows), None)[0]

    assert value(attached) == value(params)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda w: dataclasses.replace(w, up=0.1 * rng.normal(size=w.up.shape).astype(np.float32))
        if isinstance(w, lora.LoRA) else w,
        attached, is_leaf=lambda w: isinstance(w, lora.LoRA),
    )  # fmt: skip
    changed = value(moved)
    assert abs(changed - value(params)) > 1e-3
    np.testing.assert_allclose(value(lora.merge(moved)), changed, rtol=1e-5)
