"""What a run does about full disks, damaged checkpoints and damaged samples; its steps compute nothing here."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from molmoact2_jax.checkpoint import disk, orbax, runs
from molmoact2_jax.cli import main
from molmoact2_jax.cli import train as command
from molmoact2_jax.data import quarantine
from tests.train import drawer


@pytest.fixture
def dataset(tmp_path):
    return drawer.record(tmp_path / "drawer")


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    drawer.on_one_device(monkeypatch)
    return drawer.count_steps(monkeypatch)


def full(monkeypatch, *steps):
    """Lets saves of these steps find the disk full."""
    save = orbax.Checkpoints.save

    def attempt(self, number, *rest):
        if number in steps:
            raise disk.FullError(f"checkpoint: no room for step {number}.")
        save(self, number, *rest)

    monkeypatch.setattr(orbax.Checkpoints, "save", attempt)


def test_a_full_disk_costs_a_checkpoint_and_no_run(tmp_path, dataset, golden, monkeypatch, caplog):
    full(monkeypatch, 3)
    with caplog.at_level(logging.ERROR, logger="molmoact2_jax"):
        assert command.train(drawer.table(tmp_path / "run", dataset, golden, steps=8)) == "finished"
    assert "no room for step 3" in caplog.text
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["6", "8"]


def test_a_save_that_failed_is_made_up_for_when_the_run_is_stopped(tmp_path, dataset, golden, monkeypatch):
    drawer.stop_after(monkeypatch, 3)
    save, failures = orbax.Checkpoints.save, []

    def first_fails(self, number, *rest):
        if not failures:
            failures.append(number)
            raise disk.FullError("checkpoint: no room.")
        save(self, number, *rest)

    monkeypatch.setattr(orbax.Checkpoints, "save", first_fails)
    assert command.train(drawer.table(tmp_path / "run", dataset, golden)).startswith("stopped")
    assert failures == [3] and (tmp_path / "run" / "checkpoints" / "3").is_dir()


def test_a_run_that_cannot_save_its_end_does_not_call_itself_finished(tmp_path, dataset, golden, monkeypatch, capsys):
    full(monkeypatch, 8)
    made = drawer.table(tmp_path / "run", dataset, golden)
    with pytest.raises(disk.FullError, match="no room for step 8"):
        command.train(made)
    monkeypatch.setattr(command, "run", lambda argv: command.train(made) and 0)
    assert main.main(["train"]) == 2
    shown = capsys.readouterr().err
    assert "error: checkpoint: no room for step 8." in shown and "Traceback" not in shown
    assert (tmp_path / "run" / "checkpoints" / "6").is_dir()


def test_a_damaged_latest_checkpoint_falls_back_and_repeats_the_same_rows(
    tmp_path, dataset, golden, monkeypatch, caplog, seen
):
    command.train(drawer.table(tmp_path / "whole", dataset, golden))
    whole = seen.copy()
    seen.clear()
    with monkeypatch.context() as patch:
        drawer.stop_after(patch, 5)
        command.train(drawer.table(tmp_path / "run", dataset, golden))
    for file in (tmp_path / "run" / "checkpoints" / "5" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])
    with caplog.at_level(logging.ERROR, logger="molmoact2_jax"):
        assert command.train(drawer.table(tmp_path / "run", dataset, golden)) == "finished"
    assert "5: cannot be read" in caplog.text and "trying the one before" in caplog.text
    assert seen == whole[:5] + whole[3:]  # step 3 was saved too
    assert (tmp_path / "run" / "checkpoints" / "5.damaged").is_dir()


def spoil(dataset, row):
    """Makes an action of the table NaN."""
    path = next(dataset.glob("data/*/*.parquet"))
    rows = pq.read_table(path)
    actions = np.stack(rows["action"].to_numpy(zero_copy_only=False)).astype(np.float32)
    actions[row, 1] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), actions.shape[1])
    pq.write_table(rows.set_column(rows.column_names.index("action"), "action", column), path)


def test_damaged_samples_are_listed_in_the_run_and_the_next_run_leaves_them_out(
    tmp_path, dataset, golden, monkeypatch, caplog
):
    spoil(dataset, 20)
    made = drawer.table(tmp_path / "run", dataset, golden, steps=6)
    with monkeypatch.context() as patch:
        drawer.stop_after(patch, 3)
        command.train(made)
    with caplog.at_level(logging.WARNING, logger="molmoact2_jax"):
        assert command.train(made) == "finished"
    listed = tmp_path / "run" / runs.QUARANTINE
    entries = quarantine.read(listed)
    assert len(set(entries)) == len(entries) > 0
    assert all(entry.episode == 1 and "action channel 1 is nan" in entry.reason for entry in entries)
    assert "damaged samples were left out" in caplog.text and str(listed) in caplog.text

    again = drawer.table(tmp_path / "again", dataset, golden, steps=6)
    again["data"]["robots"][0]["quarantine"] = str(listed)
    command.train(again)
    lines = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    found = quarantine.read(tmp_path / "again" / runs.QUARANTINE)
    assert not {(entry.episode, entry.frame) for entry in found} & {(entry.episode, entry.frame) for entry in entries}
    assert lines[-1]["quarantined"] == len(found)
