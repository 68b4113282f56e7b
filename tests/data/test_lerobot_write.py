import json

import fixtures
import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures import VIEWS

from molmoact2_jax.data import lerobot_files, lerobot_write

MADE = fixtures.episodes()


def test_metadata_of_a_written_dataset_is_what_lerobot_reads(tmp_path):
    root = fixtures.lerobot(tmp_path / "own", MADE)
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_frames"], info["total_episodes"]) == ("v3.0", 21, 3)
    assert list(info["features"])[-5:] == ["timestamp", "frame_index", "episode_index", "index", "task_index"]
    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    assert tasks["__index_level_0__"].to_pylist() == [m.task for m in MADE]
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in rows] == [(0, 7), (7, 12), (12, 21)]
    np.testing.assert_allclose([r[f"videos/{VIEWS[0]}/from_timestamp"] for r in rows], [0, 0.7, 1.2])
    np.testing.assert_allclose(rows[1]["stats/action/mean"], MADE[1].action.mean(0), rtol=1e-6)
    stats = json.loads((root / "meta/stats.json").read_text())
    every = np.concatenate([m.action for m in MADE])
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(every, 0.99, axis=0), rtol=1e-6)
    table_ = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert (
        table_["index"].to_pylist() == list(range(21))
        and table_["episode_index"].to_pylist() == [0] * 7 + [1] * 5 + [2] * 9
    )


def test_large_datasets_spread_over_files(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_files, "_packs", lambda files, megabytes: [[0, 1], [2]])
    monkeypatch.setattr(lerobot_files, "CHUNK_FILES", 1)
    source = fixtures.open_lerobot(fixtures.lerobot(tmp_path / "own", MADE))
    assert (tmp_path / "own/data/chunk-001/file-000.parquet").exists()
    for e in range(3):
        assert fixtures.code(source.frames(e, [4], VIEWS)[VIEWS[1]][0]) == (e, 4, 1)
        np.testing.assert_array_equal(source.column("state", e), MADE[e].state)


def test_a_recording_resumes_after_a_crash(tmp_path):
    def begin():
        features = fixtures.lerobot_features(MADE, "video")
        return lerobot_write.Writer(tmp_path / "own", fps=10, features=features, codec="libx264")

    def record(writer, episode):
        for t in range(len(episode)):
            writer.add(fixtures.lerobot_frame(episode, t), episode.task)

    writer = begin()
    record(writer, MADE[0])
    writer.end_episode()
    record(writer, MADE[2])  # the process dies here
    del writer
    writer = begin()
    assert writer.num_episodes == 1 and not (tmp_path / "own").exists()
    record(writer, MADE[2])
    writer.discard_episode()
    record(writer, MADE[1])
    writer.end_episode()
    source = fixtures.open_lerobot(writer.finalize())
    assert source.episode_lengths.tolist() == [7, 5]
    assert fixtures.code(source.frames(1, [4], VIEWS)[VIEWS[1]][0]) == (1, 4, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]
    with pytest.raises(ValueError, match="exists already"):
        begin()


def test_a_writer_refuses_frames_of_another_form(tmp_path):
    features = fixtures.lerobot_features(MADE, "video")
    writer = lerobot_write.Writer(tmp_path / "own", fps=10, features=features)
    frame = fixtures.lerobot_frame(MADE[0], 0)
    with pytest.raises(ValueError, match="expected"):
        writer.add({key: value for key, value in frame.items() if key != "action"}, "x")
    with pytest.raises(ValueError, match=r"action is \[7\], expected \[8\]"):
        writer.add(frame | {"action": np.zeros(7)}, "x")
    with pytest.raises(ValueError, match="expected uint8"):
        writer.add(frame | {VIEWS[0]: np.zeros((48, 64, 3), np.float32)}, "x")
    with pytest.raises(ValueError, match="expected whole episodes"):
        writer.finalize()
    with pytest.raises(ValueError, match="other settings"):
        lerobot_write.Writer(tmp_path / "own", fps=20, features=features)
    with pytest.raises(ValueError, match="task is None, expected an instruction"):
        writer.add(frame, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": 29.97}, r"fps 29.97, expected a whole number"),
        ({"fps": 0}, "fps 0, expected a whole number"),
        ({"codec": "libx265"}, "codec 'libx265', expected one of"),
        ({"size": (47, 64), "codec": "libx264"}, r"image is 47 x 64, expected even sizes for H264"),
    ],
)
def test_a_writer_refuses_settings_that_cannot_be_encoded(tmp_path, change, words):
    features = {VIEWS[0]: lerobot_write.camera(*change.pop("size", (48, 64)))}
    with pytest.raises(ValueError, match=words):
        lerobot_write.Writer(tmp_path / "own", **{"fps": 10, "features": features} | change)
    assert not list(tmp_path.iterdir())


def test_pictures_of_odd_sizes_are_written_in_av1(tmp_path):
    made = fixtures.episodes((4,), size=(47, 65))
    source = fixtures.open_lerobot(fixtures.lerobot(tmp_path / "own", made, codec="libsvtav1"))
    view = source.frames(0, [3, 0], VIEWS[:1])[VIEWS[0]]
    assert view.shape == (2, 47, 65, 3) and [fixtures.code(picture)[1] for picture in view] == [3, 0]
