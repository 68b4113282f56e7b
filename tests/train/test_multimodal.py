"""Training on robots and on questions about pictures, by turns and in the same rows."""

import json
import logging

import numpy as np
import pytest

from molmoact2_jax.cli import train as command
from molmoact2_jax.data import pictures
from tests.train import drawer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A robot dataset, and a directory with one set of the registry: questions in JSON lines."""
    root = tmp_path_factory.mktemp("data")
    questions, rng = root / "vlm" / "science_qa_img", np.random.default_rng(0)
    questions.mkdir(parents=True)
    for i in range(8):
        picture = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        (questions / f"{i}.png").write_bytes(pictures.encode_png(picture))
    said = [
        [dict(role="user", content=f"What is number {i}?"), dict(role="assistant", content=f"It is {i}.")]
        for i in range(8)
    ]
    records = [dict(images=[f"{i}.png"], style="vqa2", messages=messages) for i, messages in enumerate(said)]
    (questions / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return drawer.record(root / "drawer"), root / "vlm"


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    drawer.on_one_device(monkeypatch)


def table(run_dir, data, golden, kind, **changes):
    made = drawer.table(run_dir, data[0], golden, log=dict(every=1), **changes)
    made["data"] |= dict(vlm_root=str(data[1]), vlm=kind, vlm_rate=0.5, tokens=320, vlm_tokens=160, crops=4)
    return made


def reported(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_rows_of_both_kinds_have_losses_by_style(tmp_path, data, golden):
    assert command.train(table(tmp_path / "run", data, golden, "mixed", steps=4)) == "finished"
    lines = reported(tmp_path / "run")
    assert any({"entropy/robot_action", "entropy/vlm"} <= line.keys() for line in lines)
    for line in lines:
        assert np.isfinite([value for name, value in line.items() if name.startswith(("loss", "entropy"))]).all()


@pytest.mark.slow
def test_steps_of_both_kinds_take_turns_and_are_reported_apart(tmp_path, data, golden, caplog):
    with caplog.at_level(logging.ERROR, logger="molmoact2_jax"):
        assert command.train(table(tmp_path / "run", data, golden, "separate", steps=8)) == "finished"
    assert "compiled again" not in caplog.text
    lines = reported(tmp_path / "run")
    asked = [line for line in lines if "vlm/loss" in line]
    acted = [line for line in lines if "loss" in line]
    assert len(asked) + len(acted) == len(lines) == 8
    assert asked
    assert acted
    assert all(line["vlm/entropy/vlm"] > 0 and "loss/flow" not in line for line in asked)
    assert all(line["entropy/robot_action"] > 0 and line["loss/flow"] > 0 for line in acted)


@pytest.mark.parametrize("kind", ["separate", "mixed"])
def test_a_restart_goes_on_with_the_same_rows(tmp_path, data, golden, monkeypatch, kind):
    seen = drawer.count_steps(monkeypatch)
    command.train(table(tmp_path / "whole", data, golden, kind, steps=12))
    whole = seen.copy()
    seen.clear()
    for stop in (4, 3):
        with monkeypatch.context() as patch:
            drawer.stop_after(patch, stop)
            assert command.train(table(tmp_path / "parts", data, golden, kind, steps=12)).startswith("stopped")
    assert command.train(table(tmp_path / "parts", data, golden, kind, steps=12)) == "finished"
    assert seen == whole
    assert len({len(rows[0]) for rows in whole}) == (2 if kind == "separate" else 1)
