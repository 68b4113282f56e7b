import dataclasses
import json
import logging
import pathlib
import pickle
import shutil

import av
import fixtures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures import VIEWS

from molmoact2_jax.data import lerobot_index, lerobot_meta, oxe, quarantine
from molmoact2_jax.data.source import SampleError

MADE = fixtures.episodes()
MAKERS = {
    "v3.0 H264": fixtures.lerobot,
    "v3.0 AV1": lambda directory, made: fixtures.lerobot(directory, made, codec="libsvtav1"),
    "v3.0 images": lambda directory, made: fixtures.lerobot(directory, made, dtype="image"),
    "v2.1 H264": fixtures.lerobot_v21,
    "v2.1 AV1": lambda directory, made: fixtures.lerobot_v21(directory, made, codec="libsvtav1"),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """{format: a dataset of it}; not to be changed."""
    root = tmp_path_factory.mktemp("lerobot")
    return {name: make(root / name.replace(" ", "_"), MADE) for name, make in MAKERS.items()}


@pytest.fixture
def v3(originals, tmp_path):
    return fixtures.copy(originals["v3.0 H264"], tmp_path / "own")


def decoded(directory, camera):
    """Every frame of every video of a camera, decoded in a row."""
    frames = []
    for path in sorted(p for p in (directory / "videos").rglob("*.mp4") if f"observation.images.{camera}" in p.parts):
        with av.open(str(path)) as container:
            frames += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_reads_back_as_written(originals, name):
    source = fixtures.open_lerobot(originals[name])
    assert source.cameras == VIEWS and source.fps == 10 and source.problems == () and source.valid.all()
    assert source.state_names == fixtures.MOTORS and source.num_frames == 21
    expected = {c: MADE[0].cameras[c.rpartition(".")[2]] for c in VIEWS}
    for camera in VIEWS:
        short = camera.rpartition(".")[2]
        exact = np.concatenate([m.cameras[short] for m in MADE])
        expected[camera] = exact if "images" in name else decoded(originals[name], short)
    for e, made in enumerate(MADE):
        np.testing.assert_array_equal(source.column("state", e), made.state)
        np.testing.assert_array_equal(source.chunk(e, 0, len(made)).actions, made.action)
        order = np.random.default_rng(e).permutation(len(made)).tolist()
        views = source.frames(e, order, VIEWS)
        for c, camera in enumerate(VIEWS):
            assert [fixtures.code(x) for x in views[camera]] == [(e, t, c) for t in order]
            start = int(source.episode_starts[e])
            np.testing.assert_array_equal(views[camera], expected[camera][start : start + len(made)][order])
        assert source.tasks(e, 1) == (made.task,) and source.annotation(e) is None
        assert source.same_task(e).tolist() == [e]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_a_dataset_written_by_lerobot_reads_as_lerobot_reads_it(tmp_path, version):
    root = fixtures.copy(pathlib.Path(__file__).parent / "by_lerobot" / version, tmp_path / "own")
    source, frames = fixtures.open_lerobot(root), np.load(root / "frames.npz")
    assert source.episode_lengths.tolist() == [4, 3] and source.fps == 10 and source.problems == ()
    assert source.action_names == ("a.pos", "b.pos", "gripper.pos")
    assert source.cameras == ("observation.images.front", "observation.images.wrist")
    for e, length in enumerate((4, 3)):
        numbers = 10 * e + np.arange(length)[:, None] + np.arange(3) / 10
        np.testing.assert_array_equal(source.column("state", e), numbers.astype(np.float32))
        expected = numbers[[*range(1, length), length - 1]].astype(np.float32) + 100
        np.testing.assert_array_equal(source.chunk(e, 1, length).actions, expected)
        assert source.tasks(e, 0) == (f"öffne Schublade {e}",)
        order = list(range(length))[::-1]
        for camera, view in source.frames(e, order, source.cameras).items():
            start = int(source.episode_starts[e])
            np.testing.assert_array_equal(view, frames[camera.rpartition(".")[2]][start : start + length][::-1])


def test_a_source_pickles_without_open_files(originals):
    source = fixtures.open_lerobot(originals["v3.0 H264"])
    before = source.frames(2, [8, 0], VIEWS)
    again = pickle.loads(pickle.dumps(source))
    for camera, view in again.frames(2, [8, 0], VIEWS).items():
        np.testing.assert_array_equal(view, before[camera])
    source.close()
    source.frames(0, [0], VIEWS)


def test_selection_and_quarantine_go_by_the_datasets_own_numbers(originals, tmp_path):
    root = originals["v2.1 H264"]
    quarantine.append(tmp_path / "q.jsonl", [quarantine.Entry(root.name, 2, 1, "x")])
    source = fixtures.open_lerobot(root, episodes=(2, 1), quarantine=tmp_path / "q.jsonl")
    assert source.episode_ids.tolist() == [2, 1] and np.flatnonzero(~source.valid).tolist() == [1]
    assert fixtures.code(source.frames(1, [4], VIEWS[:1])[VIEWS[0]][0]) == (1, 4, 0)


def test_annotations_replace_nothing_by_themselves_but_are_there(v3, caplog):
    annotated = pa.table({"task": ["grasp the mug", " "], "episode_index": [0, 2]})
    pq.write_table(annotated, v3 / "meta/tasks_annotated.parquet")
    pq.write_table(pa.table({"task_index": [4, 4, 0], "episode_index": [0, 1, 2]}), v3 / "meta/task_to_episode.parquet")
    source = fixtures.open_lerobot(v3)
    assert [source.annotation(e) for e in range(3)] == ["grasp the mug", None, None]
    assert source.task(0, 0) == MADE[0].task
    assert source.same_task(1).tolist() == [0, 1] and source.same_task(2).tolist() == [2]
    # pandas keeps no column of an index that counts 0, 1, 2, ...
    counting = {"kind": "range", "name": "episode_index", "start": 1, "stop": 3, "step": 1}
    described = {b"pandas": json.dumps({"index_columns": [counting]}).encode()}
    pq.write_table(
        pa.table({"task": ["b", "c"]}).replace_schema_metadata(described), v3 / "meta/tasks_annotated.parquet"
    )
    assert [fixtures.open_lerobot(v3).annotation(e) for e in range(3)] == [None, "b", "c"]
    pq.write_table(pa.table({"task": ["a", "b"], "episode_index": [0, 0]}), v3 / "meta/tasks_annotated.parquet")
    with caplog.at_level(logging.WARNING):
        assert fixtures.open_lerobot(v3).annotation(0) is None
    assert "unique episode numbers" in caplog.text
    (v3 / "meta/task_to_episode.parquet").write_bytes(b"PAR1")
    with caplog.at_level(logging.WARNING):
        assert fixtures.open_lerobot(v3).same_task(1).tolist() == [1]
    assert "task_to_episode.parquet" in caplog.text


def companion(root, directory, codes):
    """A depth companion: the dataset's table with columns of codes."""
    shutil.copytree(root, directory, ignore=shutil.ignore_patterns("videos", ".molmoact2"))
    info = json.loads((directory / "meta/info.json").read_text())
    info["features"] = {k: v for k, v in info["features"].items() if v["dtype"] != "video"}
    info["features"]["buffer_codes"] = {"dtype": "int16", "shape": [100], "names": None}
    (directory / "meta/info.json").write_text(json.dumps(info))
    path = directory / "data/chunk-000/file-000.parquet"
    column = pa.array(codes.tolist(), pa.list_(pa.int16()))
    pq.write_table(pq.read_table(path).append_column("buffer_codes", column), path)
    return directory


def test_depth_codes_come_from_the_first_camera_with_a_companion(originals, tmp_path):
    codes = np.random.default_rng(0).integers(0, 128, (21, 100))
    codes[8, 7] = 128
    root = originals["v3.0 H264"]
    depth = companion(root, tmp_path / "own_depth", codes)
    source = fixtures.open_lerobot(root, depth={VIEWS[1]: depth})
    np.testing.assert_array_equal(source.depth_codes(2, 3, VIEWS), codes[15])
    short = fixtures.open_lerobot(root, depth={VIEWS[1].rpartition(".")[2]: depth})
    np.testing.assert_array_equal(short.depth_codes(2, 3, VIEWS), codes[15])
    assert source.depth_codes(2, 3, VIEWS[:1]) is None and fixtures.open_lerobot(root).depth_codes(0, 0, VIEWS) is None
    np.testing.assert_array_equal(fixtures.open_lerobot(root, depth={"": depth}).depth_codes(0, 1, VIEWS[:1]), codes[1])
    np.testing.assert_array_equal(
        fixtures.open_lerobot(root, depth={"": depth}, episodes=(2,)).depth_codes(0, 0, VIEWS), codes[12]
    )
    with pytest.raises(SampleError, match=r"episode 1, frame 1: own_depth: \[100\] codes from . to 128"):
        source.depth_codes(1, 1, VIEWS)
    with pytest.raises(ValueError, match="depth of 'ceiling', expected one of"):
        fixtures.open_lerobot(root, depth={"ceiling": depth})
    with pytest.raises(ValueError, match="expected a depth companion"):
        fixtures.open_lerobot(root, depth={"": root})


def test_damage_in_the_dataset_or_its_companion_costs_that_episode_only(tmp_path):
    root = fixtures.lerobot_v21(tmp_path / "own", MADE)
    depth = fixtures.copy(root, tmp_path / "own_depth")
    info = json.loads((depth / "meta/info.json").read_text())
    info["features"] = {k: v for k, v in info["features"].items() if v["dtype"] != "video"}
    info["features"]["buffer_codes"] = {"dtype": "int16", "shape": [100], "names": None}
    (depth / "meta/info.json").write_text(json.dumps(info))
    for e, made in enumerate(MADE):
        path = depth / f"data/chunk-000/episode_{e:06}.parquet"
        codes = pa.array([[e] * 100] * len(made), pa.list_(pa.int16()))
        pq.write_table(pq.read_table(path).append_column("buffer_codes", codes), path)
    (root / "data/chunk-000/episode_000000.parquet").unlink()
    path.write_bytes(path.read_bytes()[:-30])
    source = fixtures.open_lerobot(root, depth={"": depth})
    assert source.depth_codes(1, 4, VIEWS).tolist() == [1] * 100
    with pytest.raises(SampleError, match=r"own, episode 2, frame 3: own_depth: the episode has 0 frames; .*parquet"):
        source.depth_codes(2, 3, VIEWS)


def test_joint_names_become_equal_within_a_tag():
    so100 = ("main_shoulder_pan", "main_gripper", "left_elbow_flex.pos", "wrist_roll")
    assert lerobot_meta.canonical(so100, "so100") == ("shoulder_pan", "gripper", "elbow_flex.pos", "wrist_roll")
    old = tuple(f"{s}_{j}" for s in ("left", "right") for j in (*(f"joint{i}" for i in range(1, 7)), "gripper"))
    new = tuple(f"{s}_{j}" for s in ("left", "right") for j in (*(f"joint_{i}.pos" for i in range(6)), "gripper.pos"))
    assert lerobot_meta.canonical(old, "yam") == new == lerobot_meta.canonical(new, "yam")
    swapped = (*old[7:], *old[:7])
    assert lerobot_meta.canonical(swapped, "yam") == swapped  # not silently called the other arm


def test_names_are_found_however_they_are_nested(originals):
    meta = lerobot_meta.read(originals["v3.0 H264"])
    names = list(fixtures.MOTORS)
    for given in (names, [names], {"motors": names}):
        feature = {"dtype": "float32", "shape": [8], "names": given}
        assert dataclasses.replace(meta, features={"x": feature}).channels("x") == fixtures.MOTORS
    feature = {"dtype": "float32", "shape": [2], "names": None}
    assert dataclasses.replace(meta, features={"x": feature}).channels("x") == ("x_0", "x_1")
    with pytest.raises(ValueError, match="no numeric feature 'y'"):
        meta.channels("y")


def test_older_camera_names_of_a_tag_are_found(originals):
    meta = lerobot_meta.read(originals["v3.0 H264"])
    view = {"dtype": "video", "shape": [8, 8, 3]}
    old = dataclasses.replace(meta, features={"observation.images.camera_front": view})
    assert lerobot_meta.stored_camera(old, "observation.images.top", "yam") == "observation.images.camera_front"
    assert lerobot_meta.stored_camera(meta, "wrist_image", "") == VIEWS[1]
    with pytest.raises(ValueError, match=r"no camera .*expected one of \['observation.images.camera_front'\]"):
        lerobot_meta.stored_camera(old, "observation.images.top", "")


def test_a_camera_or_column_that_is_not_there_is_refused_when_opening(originals):
    root = originals["v3.0 H264"]
    with pytest.raises(ValueError, match=r"no camera 'observation.images.top'"):
        fixtures.open_lerobot(root, tag=dataclasses.replace(fixtures.TAG, cameras=("observation.images.top",)))
    with pytest.raises(ValueError, match=r"no numeric feature 'action.del_ee_action'"):
        fixtures.open_lerobot(root, tag=oxe.TAGS["franka_molmoact"])
    with pytest.raises(SampleError, match="episode 0, frame 2: no cameras"):
        fixtures.open_lerobot(root).frames(0, [2], ["x"])
    with pytest.raises(ValueError, match="expected the root of a LeRobot dataset"):
        fixtures.open_lerobot(root / "data")


def test_columns_are_read_once(v3, monkeypatch):
    built = []
    real = lerobot_index.build
    monkeypatch.setattr(lerobot_index, "build", lambda *given: built.append(1) or real(*given))
    assert fixtures.open_lerobot(v3).digest == fixtures.open_lerobot(v3).digest and len(built) == 1
    before = fixtures.open_lerobot(v3).digest
    (v3 / "meta/stats.json").write_text("{}")
    assert fixtures.open_lerobot(v3).digest != before and len(built) == 2
