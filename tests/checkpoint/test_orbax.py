import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.checkpoint import disk, orbax
from molmoact2_jax.nn import lora
from molmoact2_jax.parallel import mesh, partition
from molmoact2_jax.train import optim

WORDS = {"llm": {"q": ("embed", "heads"), "norm": ("embed",)}, "expert": {"up": ("embed", "mlp")}}


def weights(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "llm": {"q": draw(64, 32), "norm": draw(8).astype(jnp.bfloat16)},
        "expert": {"up": lora.LoRA(draw(8, 4), draw(8, 2), draw(2, 4), 0.5)},
    }


def contents(seed=0, **meta):
    params = weights(seed)
    state = optim.init(optim.OptimConfig(), {"llm": {"q": params["llm"]["q"], "norm": None}})
    return orbax.Saved(params, state._replace(step=jnp.int32(seed)), {"next": seed}, {"config": {"seed": seed}} | meta)


def targets(cfg=None):
    saved, built = contents(), mesh.build(cfg or mesh.MeshConfig())
    words = WORDS | {"expert": lora.attach_words({"up": ("embed", "mlp")}, lora.LoRAConfig("up", 2, 1.0, dropout=0.0))}
    placed = partition.shardings(saved.params, words, built)
    followed = partition.follow(saved.optimizer, saved.params, placed, built)
    return partition.targets(saved.params, placed), partition.targets(saved.optimizer, followed)


def assert_same(restored, saved):
    for ours, theirs in ((restored.params, saved.params), (restored.optimizer, saved.optimizer)):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert restored.loader == saved.loader and restored.meta["config"] == saved.meta["config"]


@pytest.fixture
def run_dir(tmp_path):
    with orbax.Checkpoints(tmp_path / "run") as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, contents(step))
    return tmp_path / "run"


def test_an_empty_directory_has_nothing_to_restore(tmp_path):
    with orbax.Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.restore(*targets()) is None


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2), (8, 1, 1)])
def test_the_newest_is_restored_to_the_bit_on_any_mesh(run_dir, sizes):
    with orbax.Checkpoints(run_dir) as checkpoints:
        step, restored = checkpoints.restore(*targets(mesh.MeshConfig(*sizes)))
    assert step == 20
    assert_same(restored, contents(20))
    assert restored.params["llm"]["q"].sharding.mesh.devices.shape == sizes


def test_a_relative_directory_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with orbax.Checkpoints("runs/mine") as checkpoints:
        checkpoints.save(1, contents(1))
    with orbax.Checkpoints("runs/mine") as checkpoints:
        assert checkpoints.steps == [1]
    read = orbax.read_params("runs/mine", targets()[0])
    jax.tree.map(np.testing.assert_array_equal, read, contents(1).params)


def test_latest_periodic_and_best_are_kept(tmp_path):
    keep = orbax.Keep(latest=2, every=30, best=1, metric="error")
    with orbax.Checkpoints(tmp_path / "run", keep) as checkpoints:
        for step, error in ((10, 0.5), (20, 0.1), (30, 0.9), (40, 0.4), (50, 0.3), (60, 0.2)):
            checkpoints.save(step, contents(step), {"error": error})
        checkpoints.wait()
        assert checkpoints.steps == [20, 30, 50, 60]


def test_saving_returns_before_the_files_are_complete_and_closing_waits(tmp_path, monkeypatch):
    checkpoints = orbax.Checkpoints(tmp_path / "run")
    checkpoints.save(1, contents(1))
    checkpoints.close()
    assert (tmp_path / "run" / "1").is_dir()
    with orbax.Checkpoints(tmp_path / "run") as again:
        assert_same(again.restore(*targets())[1], contents(1))


def data_files(step):
    files = [f for f in step.rglob("*") if f.is_file() and "ocdbt.process" in str(f) and f.parent.name == "d"]
    return sorted(files, key=lambda f: f.stat().st_size)


def truncate(step):
    for file in data_files(step / "params"):
        file.write_bytes(file.read_bytes()[:10])


def flip_a_bit(step):
    """Changes one bit of a stored value, which no reader notices."""
    file = data_files(step / "params")[-1]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def delete_meta(step):
    (step / "meta" / "metadata").unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, delete_meta])
def test_a_damaged_latest_falls_back_and_says_so(run_dir, damage, caplog):
    damage(run_dir / "20")
    with orbax.Checkpoints(run_dir) as checkpoints:
        with caplog.at_level(logging.ERROR, logger="molmoact2_jax"):
            step, restored = checkpoints.restore(*targets())
        assert step == 10
        assert_same(restored, contents(10))
        assert "20: cannot be read" in caplog.text and "trying the one before" in caplog.text
        assert checkpoints.steps == [10] and (run_dir / "20.damaged").is_dir()
        checkpoints.save(20, contents(20))  # its number is free again
    with orbax.Checkpoints(run_dir) as checkpoints:
        assert checkpoints.restore(*targets())[0] == 20


def test_when_nothing_is_intact_the_run_does_not_start_over_silently(run_dir):
    for step in ("10", "20"):
        truncate(run_dir / step)
    with orbax.Checkpoints(run_dir) as checkpoints, pytest.raises(ValueError, match=r"none of \[20, 10\] .* is intact"):
        checkpoints.restore(*targets())


def test_a_checkpoint_of_another_model_is_refused_with_the_difference(run_dir):
    params, state = targets()
    params["llm"]["q"] = jax.ShapeDtypeStruct((64, 6), jnp.float32, sharding=params["llm"]["q"].sharding)
    with orbax.Checkpoints(run_dir) as checkpoints:
        with pytest.raises(
            ValueError, match=r"params/llm/q is \[\[64, 32\], 'float32'\], expected \[\[64, 6\], 'float32'\]"
        ):
            checkpoints.restore(params, state)
        assert checkpoints.steps == [10, 20]


def test_parameters_are_read_alone_the_newest_unless_a_step_is_named(run_dir):
    params, _ = targets()
    read = orbax.read_params(run_dir, params, step=10)
    jax.tree.map(np.testing.assert_array_equal, read, contents(10).params)
    jax.tree.map(np.testing.assert_array_equal, orbax.read_params(run_dir, params), contents(20).params)
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), params)
    assert orbax.read_params(run_dir, cast)["llm"]["q"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"step 15 .* expected one of \[10, 20\]"):
        orbax.read_params(run_dir, params, 15)


def test_a_disk_without_room_is_noticed_before_writing(run_dir, monkeypatch):
    usage = shutil.disk_usage(run_dir)
    with orbax.Checkpoints(run_dir) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        with pytest.raises(disk.FullError, match=r"Steps \[10, 20\] are intact; free some space"):
            checkpoints.save(30, contents(30))
        monkeypatch.undo()
        checkpoints.save(30, contents(30))
        checkpoints.wait()
        assert checkpoints.steps == [20, 30]


FULL = """
import pathlib, shutil, sys
sys.path.insert(0, sys.argv[2])
import jax, jax.numpy as jnp
from molmoact2_jax.checkpoint import disk, orbax

root = pathlib.Path(sys.argv[1])
small = lambda n: orbax.Saved({"w": jax.random.normal(jax.random.key(n), (1000,))}, {"m": jnp.zeros(3)}, {}, {})
target = lambda saved: tuple(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), t) for t in saved[:2]
)
usage = shutil.disk_usage(root)
shutil.disk_usage = lambda path: usage._replace(free=10**12)  # the estimate is fooled; the writers meet the full disk
checkpoints = orbax.Checkpoints(root / "run")
checkpoints.save(1, small(1))
checkpoints.wait()
filler = root / "filler"
with open(filler, "wb", buffering=0) as f:
    while True:
        try:
            f.write(bytes(4096))
        except OSError:
            break
try:
    checkpoints.save(2, small(2))
    checkpoints.wait()
    print("no error")
except disk.FullError as error:
    print("full", error)
filler.unlink()
checkpoints.save(3, small(3))
checkpoints.close()
step, saved = orbax.Checkpoints(root / "run").restore(*target(small(3)))
print(step, bool((saved.params["w"] == small(3).params["w"]).all()), sorted(p.name for p in (root / "run").iterdir()))
"""


def test_a_disk_that_fills_while_writing_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(disk), str(pathlib.Path.cwd())],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "full checkpoint: no space left" in done.stdout and "Steps [1] are intact" in done.stdout
    assert done.stdout.splitlines()[-1] == "3 True ['1', '3']"


JOB = """
import json, sys
import jax, numpy as np
from molmoact2_jax.checkpoint import disk, orbax
from molmoact2_jax.parallel import mesh, partition, processes

processes.start()
root, action = sys.argv[1], sys.argv[2]
built = mesh.build(mesh.MeshConfig(fsdp=-1))
values = np.arange(64, dtype=np.float32).reshape(16, 4)
placed = partition.shardings({"w": values}, {"w": ("embed", "mlp")}, built)
with orbax.Checkpoints(root) as checkpoints:
    if action == "save":
        w = jax.make_array_from_callback(values.shape, placed["w"], lambda i: values[i])
        for step in (1, 2):
            checkpoints.save(step, orbax.Saved({"w": w}, {"m": w}, {"next": 5}, {"a": 1}))
    else:
        target = partition.targets({"w": values}, placed)
        step, saved = checkpoints.restore(target, {"m": target["w"]})
        local = [np.array_equal(s.data, values[s.index]) for s in saved.params["w"].addressable_shards]
        print(json.dumps([step, saved.loader, all(local)]))
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_save_and_any_number_restores(run_processes, tmp_path, damaged):
    root = tmp_path / "run"
    run_processes(JOB, str(root), "save")
    if damaged:
        delete_meta(root / "2")
    want = [1 if damaged else 2, {"next": 5}, True]
    for num_processes, num_devices in ((2, 1), (1, 4)):
        shutil.copytree(root, tmp_path / f"copy{num_processes}")
        printed = run_processes(
            JOB, str(tmp_path / f"copy{num_processes}"), "restore", num_processes=num_processes, num_devices=num_devices
        )
        assert [json.loads(text.splitlines()[-1]) for text in printed] == [want] * num_processes


KILLED = """
import os, sys, jax.numpy as jnp
from molmoact2_jax.checkpoint import disk, orbax
checkpoints = orbax.Checkpoints(sys.argv[1])
checkpoints.save(1, orbax.Saved({"w": jnp.ones(1000)}, {"m": jnp.ones(3)}, {}, {}))
checkpoints.wait()
checkpoints.save(2, orbax.Saved({"w": jnp.ones(1000)}, {"m": jnp.ones(3)}, {}, {}))
os.kill(os.getpid(), 9)
"""


def test_a_run_killed_while_saving_keeps_the_step_before(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False, capture_output=True)
    with orbax.Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps[:1] == [1]
        saved = orbax.Saved({"w": jnp.ones(1000)}, {"m": jnp.ones(3)}, {}, {})
        target = [
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), t) for t in saved[:2]
        ]
        checkpoints.restore(*target)
        if 2 not in checkpoints.steps:
            checkpoints.save(2, saved)
    assert not [p for p in os.listdir(tmp_path / "run") if "tmp" in p]
