import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from molmoact2_jax.checkpoint import hf, runs
from molmoact2_jax.cli import train as command
from molmoact2_jax.train import loop, recipe
from tests.train import drawer

SOURCE = "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({!r})\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return drawer.record(tmp_path_factory.mktemp("data") / "drawer")


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Runs of this file use the first of the eight devices."""
    import jax

    from molmoact2_jax.parallel import mesh as meshes

    build, first = meshes.build, jax.devices()[:1]
    meshes.build = lambda cfg, devices=None: build(cfg, devices or first)
    yield
    meshes.build = build


def leaves(directory):
    _, params = runs.load(directory)
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(params)]


def test_a_stopped_run_resumes_to_the_bits_of_an_uninterrupted_one(tmp_path, dataset, golden, monkeypatch):
    assert command.train(drawer.table(tmp_path / "whole", dataset, golden)) == "finished"

    polls = iter(range(100))
    monkeypatch.setattr(loop.Stop, "agreed", lambda self: next(polls) == 5)
    assert command.train(drawer.table(tmp_path / "parts", dataset, golden)).startswith("stopped")
    monkeypatch.undo()
    assert command.train(drawer.table(tmp_path / "parts", dataset, golden)) == "finished"

    for a, b in zip(leaves(tmp_path / "whole"), leaves(tmp_path / "parts"), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = [json.loads(x) for x in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 4, 8]
    whole = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] == whole[-1]["loss"] or abs(lines[-1]["loss"] - whole[-1]["loss"]) < 1  # other windows


def test_a_finished_run_ends_at_once_and_a_changed_one_is_refused_with_the_difference(tmp_path, dataset, golden):
    made = drawer.table(tmp_path / "run", dataset, golden, steps=3)
    assert command.train(made) == "finished"
    assert command.train(made) == "finished"
    with pytest.raises(loop.ConfigChangedError, match=r"loss.num_samples: 2 -> 4"):
        command.train(made | dict(loss=dict(num_samples=4)))
    assert recipe.difference(made, made | dict(log=dict(every=1))) == []


@pytest.mark.slow
def test_an_exported_run_loads_as_the_run(tmp_path, dataset, golden):
    import jax

    made = drawer.table(tmp_path / "run", dataset, golden, steps=3, optimizer=dict(warmup_steps=1, ema=0.5))
    command.train(made)
    cfg, params = runs.load(tmp_path / "run")
    hf.export(cfg, params, tmp_path / "out", side_files=tmp_path / "run" / runs.SIDE)
    again, read = hf.load(tmp_path / "out")
    assert again == cfg
    jax.tree.map(np.testing.assert_array_equal, params, read)


@pytest.mark.slow
def test_low_rank_training_leaves_the_base_and_merges(tmp_path, dataset, golden):
    adapted = dict(targets=r"^llm/blocks/(q|v|up)$", rank=4)
    made = drawer.table(tmp_path / "run", dataset, golden, steps=4, lora=adapted, optimizer=dict(warmup_steps=1))
    command.train(made)
    _, source = hf.load(golden / "tiny")
    _, raw = runs.load(tmp_path / "run", merge=False)
    _, merged = runs.load(tmp_path / "run")
    np.testing.assert_array_equal(raw["llm"]["blocks"]["q"].base, source["llm"]["blocks"]["q"])
    np.testing.assert_array_equal(merged["llm"]["blocks"]["k"], source["llm"]["blocks"]["k"])
    np.testing.assert_array_equal(merged["vit"]["blocks"]["q"], source["vit"]["blocks"]["q"])
    assert np.abs(merged["llm"]["blocks"]["q"] - source["llm"]["blocks"]["q"]).max() > 0
    assert np.abs(merged["expert"]["embed"]["kernel"] - source["expert"]["embed"]["kernel"]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_forty_steps_killed_at_random_end_bit_equal(tmp_path, dataset, golden, how):
    config = tmp_path / "config.py"
    made = drawer.table("RUN", dataset, golden, steps=40, save=dict(every=4), log=dict(every=1))
    config.write_text(SOURCE.format(made))
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | dict(MOLMOACT2_CACHE=str(tmp_path / "cache"))

    def start(name):
        words = [f"--config={config}", f"--config.run_dir={tmp_path / name}"]
        main = pathlib.Path(sys.executable).parent / "molmoact2"
        return subprocess.Popen([str(main), "train", *words], env=env, stderr=subprocess.DEVNULL)

    assert start("whole").wait(600) == 0
    draws = random.Random(int(how))
    for _ in range(3):
        process, lines = start("parts"), tmp_path / "parts" / "metrics.jsonl"
        target, deadline = _steps(lines) + draws.randint(2, 9), time.monotonic() + 300
        while process.poll() is None and _steps(lines) < target and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(how)
        process.wait(120)
    assert start("parts").wait(600) == 0
    for a, b in zip(leaves(tmp_path / "whole"), leaves(tmp_path / "parts"), strict=True):
        np.testing.assert_array_equal(a, b)


def _steps(lines):
    return len(lines.read_text().splitlines()) if lines.exists() else 0


PROCESS = """
import sys
from molmoact2_jax.cli import main
sys.exit(main.main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_run_that_goes_on_with_two_processes_ends_where_one_would(
    tmp_path, dataset, golden, monkeypatch, run_processes
):
    made = drawer.table(tmp_path / "whole", dataset, golden, steps=40, save=dict(every=100))
    assert command.train(made) == "finished"
    parts = made | dict(run_dir=str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        drawer.stop_after(patch, 15)
        assert command.train(parts).startswith("stopped")
    config = tmp_path / "config.py"
    config.write_text(SOURCE.format(parts | dict(mesh=dict(data=1, fsdp=2, tensor=1))))
    printed = run_processes(PROCESS, f"--config={config}", num_processes=2, num_devices=1, timeout=900)
    assert [text.split()[-1] for text in printed] == ["finished"] * 2
    for a, b in zip(leaves(tmp_path / "whole"), leaves(tmp_path / "parts"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
