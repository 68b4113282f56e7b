import fixtures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures import VIEWS

from molmoact2_jax.data.source import SampleError

MADE = fixtures.episodes()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fixtures.lerobot_v21(tmp_path_factory.mktemp("v21") / "own", MADE)


@pytest.fixture
def v21(original, tmp_path):
    return fixtures.copy(original, tmp_path / "own")


def rewrite(path, change):
    """Changes a parquet file as a table."""
    pq.write_table(change(pq.read_table(path)), path)


def replaced(table_, name, values, kind=None):
    return table_.set_column(table_.column_names.index(name), name, pa.array(values, kind))


def test_a_missing_or_truncated_table_costs_its_episodes(v21):
    (v21 / "data/chunk-000/episode_000000.parquet").unlink()
    path = v21 / "data/chunk-000/episode_000002.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    source = fixtures.open_lerobot(v21)
    assert source.episode_lengths.tolist() == [0, 5, 0]
    assert [problem.episode for problem in source.problems] == [0, 2]
    assert "episode_000000.parquet: the file is missing" in str(source.problems[0])
    assert fixtures.code(source.frames(1, [2], VIEWS)[VIEWS[0]][0]) == (1, 2, 0)
    with pytest.raises(
        SampleError, match=r"own, episode 2, frame 0: the episode has 0 frames; .*episode_000002.parquet"
    ):
        source.frames(2, [0], VIEWS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.slice(0, 4), "4 rows, but meta says 5"),
        (lambda t: t.slice(0, 0), "no frames"),
        (lambda t: replaced(t, "frame_index", [0, 1, 1, 3, 4]), "frame_index is 1 in the episode's row 2"),
        (lambda t: replaced(t, "action", ["a"] * 5), "column action is string, expected float32"),
        (lambda t: replaced(t, "action", np.zeros((5, 8), int).tolist()), "column action is int64, expected float32"),
        (lambda t: replaced(t, "action", [[0.0] * 8] * 4 + [[0.0] * 7]), "column action has rows of"),
        (lambda t: replaced(t, "action", [[0.0] * 7] * 5), "column action has 35 numbers in 5 rows"),
        (lambda t: replaced(t, "action", [[0.0] * 8] * 4 + [None]), "column action"),
        (lambda t: replaced(t, "timestamp", [0.0, 0.1, None, 0.3, 0.4], pa.float32()), "column timestamp lacks 1"),
        (lambda t: t.drop_columns("action"), r"no columns \['action'\]"),
        (lambda t: replaced(t, "episode_index", [1, 1, 0, 1, 1]), "4 rows, but meta says 5"),
    ],
)
def test_a_damaged_table_costs_its_episode_and_says_why(v21, change, reason):
    rewrite(v21 / "data/chunk-000/episode_000001.parquet", change)
    source = fixtures.open_lerobot(v21)
    assert source.episode_lengths.tolist() == [7, 0, 9]
    with pytest.raises(SampleError, match=f"own, episode 1: .*episode_000001.parquet: .*{reason}"):
        raise source.problems[0]


def test_a_video_cut_short_or_missing_is_named_with_its_frame(v21):
    clip = v21 / f"videos/chunk-000/{VIEWS[1]}/episode_000002.mp4"
    clip.write_bytes(clip.read_bytes()[:-2000])
    source = fixtures.open_lerobot(v21)
    with pytest.raises(SampleError, match=f"own, episode 2, frame 3: {VIEWS[1]}: .*episode_000002.mp4"):
        source.frames(2, [3], VIEWS)
    assert source.frames(2, [3], VIEWS[:1])[VIEWS[0]].shape == (1, 48, 64, 3)
    clip.unlink()
    with pytest.raises(SampleError, match="no video can be opened"):
        fixtures.open_lerobot(v21).frames(2, [0, 1], VIEWS)


def test_timestamps_that_no_frame_has_are_refused_by_frame(v21):
    times = np.arange(5, dtype=np.float32) / 10
    times[3] += 0.03
    rewrite(v21 / "data/chunk-000/episode_000001.parquet", lambda t: replaced(t, "timestamp", times))
    source = fixtures.open_lerobot(v21)
    with pytest.raises(SampleError, match=r"episode 1, frame 3: .*no frame within 0.001 s of 0.3300 s"):
        source.frames(1, [4, 3, 0], VIEWS[:1])
    source.frames(1, [4, 0], VIEWS)


def test_an_embedded_picture_of_no_bytes_is_refused(tmp_path):
    root = fixtures.lerobot(tmp_path / "own", MADE, dtype="image")

    def change(t):
        values = t[VIEWS[0]].to_pylist()
        values[8] = {"bytes": b"", "path": None}
        values[9] = None
        return replaced(t, VIEWS[0], values, t.schema.field(VIEWS[0]).type)

    rewrite(root / "data/chunk-000/file-000.parquet", change)
    source = fixtures.open_lerobot(root)
    with pytest.raises(SampleError, match=f"episode 1, frame 1: {VIEWS[0]}: the picture has 0 bytes"):
        source.frames(1, [0, 1], VIEWS)
    with pytest.raises(SampleError, match=r"episode 1, frame 2: .*holds no picture"):
        source.frames(1, [2], VIEWS)
    source.frames(1, [0, 3], VIEWS)


def test_a_camera_whose_column_is_missing_is_refused_by_frame(tmp_path):
    root = fixtures.lerobot(tmp_path / "own", MADE, dtype="image")
    rewrite(root / "data/chunk-000/file-000.parquet", lambda t: t.drop_columns(VIEWS[1]))
    source = fixtures.open_lerobot(root)
    with pytest.raises(SampleError, match=rf"own, episode 1, frame 2: {VIEWS[1]}: .*file-000.parquet: no column"):
        source.frames(1, [2], VIEWS)
    assert fixtures.code(source.frames(1, [2], VIEWS[:1])[VIEWS[0]][0]) == (1, 2, 0)


def test_text_that_is_not_utf8_and_unknown_tasks_are_refused(tmp_path):
    v3 = fixtures.lerobot(tmp_path / "own", MADE)
    column = pa.array([b"caf\xe9", b"b"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"task_index": [0, 1], "task": column}), v3 / "meta/tasks.parquet")
    source = fixtures.open_lerobot(v3)
    with pytest.raises(SampleError, match="own, episode 0, frame 2: the instruction is not UTF-8"):
        source.task(0, 2)
    assert source.task(1, 0) == "b"
    with pytest.raises(SampleError, match="episode 2, frame 0: task_index 2 is not among the 2 tasks"):
        source.task(2, 0)


def test_metadata_that_cannot_be_read_is_one_error(tmp_path):
    v3 = fixtures.lerobot(tmp_path / "own", MADE)
    path = v3 / "meta/episodes/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="own: meta cannot be read"):
        fixtures.open_lerobot(v3)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("info.json", '"fps": 10', '"fps": ,', r"JSONDecodeError|info\.json: Expecting value"),
        ("info.json", '"features"', '"fatures"', "KeyError: 'features'"),
        ("info.json", '"dtype": "float32"', '"dtype": "float33"', "info.json: feature 'observation.state' is"),
        ("info.json", '"shape": [8]', '"shape": ["8"]', "info.json: feature 'observation.state' is"),
        ("info.json", "{episode_index:06d}", "{episode_index:06}.{x}", "KeyError: 'x'"),
        ("info.json", "{episode_index:06d}", "{episode_index:06#d}", "Invalid format"),
        ("episodes.jsonl", '"length": 5', '"length": ', "episodes.jsonl, line 2: Expecting value"),
        ("tasks.jsonl", '"task_index": 1', '"task_index" 1', "tasks.jsonl, line 2: Expecting ':'"),
    ],
)
def test_metadata_of_another_form_is_one_error_that_names_its_place(v21, name, old, new, words):
    path = v21 / "meta" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"own: meta cannot be read .*({words})"):
        fixtures.open_lerobot(v21)


def test_a_state_that_is_said_to_be_no_number_is_refused_when_opening(v21):
    path = v21 / "meta/info.json"
    path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "string"', 1))
    with pytest.raises(ValueError, match=r"no numeric feature .observation\.state., expected one of"):
        fixtures.open_lerobot(v21)


def test_tasks_that_changed_on_disk_fail_their_checksum(tmp_path):
    v3 = fixtures.lerobot(tmp_path / "own", MADE)
    path = v3 / "meta/tasks.parquet"
    path.write_bytes(path.read_bytes().replace(b"push the block", b"push the clock"))
    with pytest.raises(ValueError, match=r"own: meta cannot be read .*CRC"):
        fixtures.open_lerobot(v3)
