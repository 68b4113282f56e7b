import json
import math
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from molmoact2_jax.train import writers


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_jsonl_has_one_line_per_report_and_null_for_what_is_not_finite(tmp_path):
    writer = writers.Jsonl(tmp_path / "run", 0)
    writer.scalars(1, {"loss": np.float32(1.5), "grad": math.inf})
    writer.close()
    assert lines(tmp_path / "run") == [{"step": 1, "loss": 1.5, "grad": None}]


def test_a_resumed_run_has_every_step_once(tmp_path):
    first = writers.Jsonl(tmp_path, 0)
    for step in (10, 20, 30):
        first.scalars(step, {"loss": 1.0})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # cut off by a kill
    second = writers.Jsonl(tmp_path, 20)
    second.scalars(30, {"loss": 2.0})
    second.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def events(directory):
    """Reads TensorBoard's records: u64 length, crc, event, crc."""
    for file in sorted((directory / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event()
            event.ParseFromString(data[12 : 12 + size])
            data = data[16 + size :]
            yield event


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    writer = writers.TensorBoard(tmp_path, 0)
    writer.scalars(5, {"loss": 2.5})
    writer.image(5, "batch", np.zeros((4, 6, 3), np.uint8))
    writer.close()
    values = {value.tag: (event.step, value) for event in events(tmp_path) for value in event.summary.value}
    assert values["loss"][0] == 5 and values["loss"][1].simple_value == 2.5
    assert (values["batch"][1].image.height, values["batch"][1].image.width) == (4, 6)


def test_every_writer_gets_everything_and_pictures_are_files(tmp_path):
    writer = writers.create(tmp_path, 0, first=True, config={}, wandb=None)
    writer.scalars(1, {"loss": 3.0})
    picture = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    writer.image(0, "batch", picture)
    writer.close()
    assert lines(tmp_path)[0]["loss"] == 3.0
    np.testing.assert_array_equal(Image.open(tmp_path / "pictures" / "batch_0.png"), picture)
    assert any(value.tag == "loss" for event in events(tmp_path) for value in event.summary.value)


def test_other_processes_write_nothing(tmp_path):
    writer = writers.create(tmp_path / "run", 0, first=False, config={}, wandb=None)
    writer.scalars(1, {"loss": 3.0})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_asking_for_an_absent_wandb_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb is not installed, .* Run pip install"):
        writers.create(tmp_path, 0, first=True, config={}, wandb={"project": "p"})


def test_wandb_continues_under_the_same_id(tmp_path, monkeypatch):
    started, logged = [], []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            logged.append("finished")

    class Fake:
        class util:
            @staticmethod
            def generate_id():
                return f"id{len(started)}"

        Image = staticmethod(lambda picture: picture.shape)

        @staticmethod
        def init(**options):
            started.append(options)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Fake)
    for step in (0, 7):
        writer = writers.create(tmp_path, step, first=True, config={"a": 1}, wandb={"project": "p"})
        writer.scalars(step + 1, {"loss": 1.0})
        writer.close()
    assert [run["id"] for run in started] == ["id0", "id0"] and started[0]["resume"] == "allow"
    assert started[0]["project"] == "p" and started[0]["config"] == {"a": 1}
    assert logged == [(1, {"loss": 1.0}), "finished", (8, {"loss": 1.0}), "finished"]
