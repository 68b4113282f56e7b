import dataclasses
import json
import pickle

import fixtures
import numpy as np
import pytest

from molmoact2_jax.data import oxe, pictures, quarantine, rlds, rlds_index, rlds_write, table, tfrecord
from molmoact2_jax.data.source import SampleError

MADE = fixtures.episodes()


def open_own(directory, **options):
    return rlds.RLDSSource(directory, fixtures.ROW, table.Options(**options))


def assert_equal(source, made=MADE, order=None):
    """Compares everything a source says with what it was made from."""
    for e, m in enumerate(order or range(len(made))):
        np.testing.assert_array_equal(source.column("state", e), made[m].state)
        np.testing.assert_array_equal(source.column("action", e), made[m].action)
        frames = list(range(len(made[m])))[::-1]
        for name, view in source.frames(e, frames, source.cameras).items():
            np.testing.assert_array_equal(view, made[m].cameras[name][::-1])
        assert source.task(e, 0) == made[m].task


@pytest.mark.parametrize("file_format", rlds_write.FORMATS)
def test_png_datasets_read_back_to_the_bit(tmp_path, file_format):
    source = open_own(fixtures.rlds(tmp_path / "own", MADE, file_format=file_format))
    assert_equal(source)
    assert source.problems == () and source.valid.all() and source.num_frames == 21
    assert source.column_shapes()["state"] == (8,) and source.column_shapes()["steps/reward"] == ()
    np.testing.assert_array_equal(source.columns(["action"])["action"], np.concatenate([m.action for m in MADE]))
    np.testing.assert_allclose(source.column("timestamp", 1), np.arange(5) / 10)


@pytest.mark.parametrize("file_format", rlds_write.FORMATS)
def test_jpeg_frames_equal_the_decoder_of_tfds(tmp_path, file_format):
    import tensorflow_datasets as tfds

    directory = fixtures.rlds(tmp_path / "own", MADE, file_format=file_format, encoding="jpeg")
    source = open_own(directory)
    features = tfds.builder_from_directory(directory).info.features["steps"].feature["observation"]["image"]
    got = source.frames(2, [4, 0], ["image"])["image"]
    for i, frame in enumerate((4, 0)):
        np.testing.assert_array_equal(got[i], features.decode_example_np(source.encoded(2, frame, "image")))
        assert fixtures.code(got[i]) == (2, frame, 0)


def test_a_dataset_written_by_tfds_reads_the_same(tmp_path):
    source = open_own(fixtures.rlds_by_tfds(tmp_path, MADE))
    order = [fixtures.code(source.frames(e, [0], ["image"])["image"][0])[0] for e in range(3)]
    assert sorted(order) == [0, 1, 2]
    assert_equal(source, order=order)


@pytest.mark.parametrize("file_format", rlds_write.FORMATS)
def test_tfds_reads_what_we_write(tmp_path, file_format):
    import tensorflow_datasets as tfds

    directory = fixtures.rlds(tmp_path / "own", MADE, file_format=file_format)
    builder = tfds.builder_from_directory(directory)
    assert builder.info.splits["train"].num_examples == 3
    if file_format == "array_record":  # TFDS reads TFRecord only with TensorFlow
        episodes = list(builder.as_data_source("train"))
    else:
        episodes = []
        for path in builder.info.splits["train"].filepaths:
            found = tfrecord.scan(path)
            with open(path, "rb") as file:
                raw = [tfrecord.read(file, int(o), int(n)) for o, n in zip(found.offsets, found.lengths)]
            episodes += [builder.info.features.deserialize_example_np(record) for record in raw]
    for made, episode in zip(MADE, episodes, strict=True):
        steps = list(episode["steps"])
        np.testing.assert_array_equal([step["action"] for step in steps], made.action)
        np.testing.assert_array_equal([step["observation"]["image"] for step in steps], made.cameras["image"])
        assert steps[0]["language_instruction"].decode() == made.task


def test_the_index_is_built_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    built = []
    real = rlds_index.build
    monkeypatch.setattr(rlds_index, "build", lambda *given: built.append(1) or real(*given))
    first, second = open_own(directory), open_own(directory)
    assert len(built) == 1 and first.digest == second.digest
    shard = next(directory.glob("*00000-of*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    assert open_own(directory).digest != first.digest and len(built) == 2


def test_read_only_datasets_keep_their_index_elsewhere(tmp_path):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    assert_equal(open_own(directory, cache=tmp_path / "cache"))
    assert (tmp_path / "cache").exists() and not (directory / ".molmoact2").exists()


def test_a_source_pickles_without_open_files(tmp_path):
    source = open_own(fixtures.rlds(tmp_path / "own", MADE))
    source.frames(0, [0], ["image"])
    data = pickle.dumps(source)
    assert len(data) < 20_000
    assert_equal(pickle.loads(data))
    source.close()
    assert_equal(source)


def test_selected_episodes_are_renumbered_but_keep_their_numbers(tmp_path):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    source = open_own(directory, episodes=(2, 0))
    assert_equal(source, order=[2, 0])
    assert source.episode_ids.tolist() == [2, 0] and source.episode_starts.tolist() == [0, 9]
    assert source.digest != open_own(directory).digest
    assert source.locate(10) == (1, 1)
    with pytest.raises(ValueError, match=r"no episodes \[7\]"):
        open_own(directory, episodes=(7,))


def test_past_the_end_the_last_action_repeats_and_is_invalid(tmp_path):
    source = open_own(fixtures.rlds(tmp_path / "own", MADE))
    chunk = source.chunk(1, 3, 4)
    np.testing.assert_array_equal(chunk.actions, MADE[1].action[[3, 4, 4, 4]])
    assert chunk.valid.tolist() == [True, True, False, False] and chunk.actions.dtype == np.float32


def test_cameras_that_did_not_film_are_left_out(tmp_path):
    camera = dataclasses.replace(fixtures.ROW.cameras[1], present="episode_metadata/has_wrist_image")
    row = dataclasses.replace(fixtures.ROW, cameras=(fixtures.ROW.cameras[0], camera))
    source = rlds.RLDSSource(fixtures.rlds(tmp_path / "own", MADE), row)
    assert source.cameras_of(0) == ("image", "wrist_image") and source.cameras_of(1) == ("image",)
    with pytest.raises(SampleError, match="episode 1, frame 2: no camera 'wrist_image'"):
        source.frames(1, [2], ["wrist_image"])


def test_trimmed_steps_are_no_frames(tmp_path):
    row = dataclasses.replace(fixtures.ROW, drop_first=1, drop_last=2)
    source = rlds.RLDSSource(fixtures.rlds(tmp_path / "own", MADE), row)
    assert source.episode_lengths.tolist() == [4, 2, 6]
    np.testing.assert_array_equal(source.column("action", 0), MADE[0].action[1:-2])
    assert fixtures.code(source.frames(2, [5], ["image"])["image"][0]) == (2, 6, 0)
    np.testing.assert_allclose(source.column("timestamp", 0), np.arange(4) / 10)


def test_a_row_that_does_not_fit_is_refused_with_what_there_is(tmp_path):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    with pytest.raises(ValueError, match=r"exterior_image_1_left.*steps/observation/wrist_image"):
        rlds.RLDSSource(directory, oxe.ROWS["droid"])
    row = dataclasses.replace(fixtures.ROW, cameras=(oxe.Camera("a", "steps/action"),))
    with pytest.raises(ValueError, match="expected Image features"):
        rlds.RLDSSource(directory, row)
    with pytest.raises(ValueError, match="split 'test'"):
        rlds.RLDSSource(directory, fixtures.ROW, split="test")
    with pytest.raises(ValueError, match=r"features\.json"):
        rlds.RLDSSource(tmp_path / "nothing", fixtures.ROW)


def test_the_only_version_below_a_directory_is_opened(tmp_path):
    fixtures.rlds(tmp_path / "own" / "1.0.0", MADE)
    assert_equal(open_own(tmp_path / "own"))


def shard(directory, number):
    return next(directory.glob(f"*-0000{number}-of*"))


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_damaged_metadata_is_one_error(tmp_path, name):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    (directory / name).write_text("{")
    with pytest.raises(ValueError, match=f"own: TFDS cannot read .*{name}"):
        open_own(directory)


@pytest.mark.parametrize("file_format", rlds_write.FORMATS)
def test_a_missing_shard_costs_its_episodes_only(tmp_path, file_format):
    directory = fixtures.rlds(tmp_path / "own", MADE, file_format=file_format)
    shard(directory, 1).unlink()
    source = open_own(directory)
    assert source.episode_lengths.tolist() == [7, 5, 0]
    assert [problem.episode for problem in source.problems] == [2]
    with pytest.raises(SampleError, match="own, episode 2, frame 0: the episode has 0 frames; own-train"):
        source.chunk(2, 0, 4)
    assert_equal(open_own(directory, episodes=(0, 1)), order=[0, 1])


@pytest.mark.parametrize("file_format", rlds_write.FORMATS)
def test_a_truncated_shard_is_named(tmp_path, file_format):
    directory = fixtures.rlds(tmp_path / "own", MADE, file_format=file_format)
    path = shard(directory, 1)
    path.write_bytes(path.read_bytes()[:-20])
    source = open_own(directory)
    assert [problem.episode for problem in source.problems] == [2] and path.name in source.problems[0].reason
    np.testing.assert_array_equal(source.frames(0, [2], ["image"])["image"][0], MADE[0].cameras["image"][2])


@pytest.mark.parametrize("file_format", rlds_write.FORMATS)
def test_a_flipped_byte_costs_its_episode_only(tmp_path, file_format):
    directory = fixtures.rlds(tmp_path / "own", MADE, file_format=file_format)
    path = shard(directory, 0)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1  # inside the first of two records
    path.write_bytes(data)
    source = open_own(directory)
    assert source.episode_lengths.tolist() == [0, 5, 9]
    assert "checksum" in source.problems[0].reason


def test_a_wrong_length_header_costs_the_rest_of_its_shard(tmp_path):
    directory = fixtures.rlds(tmp_path / "own", MADE, per_shard=3)
    path = shard(directory, 0)
    data = bytearray(path.read_bytes())
    data[int(tfrecord.scan(path).offsets[1]) - tfrecord.HEADER] ^= 1
    path.write_bytes(data)
    source = open_own(directory)
    assert source.episode_lengths.tolist() == [7, 0, 0]
    assert all("length at byte" in problem.reason for problem in source.problems)


def test_a_picture_that_changed_after_indexing_is_refused(tmp_path):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    source = open_own(directory)
    path = shard(directory, 0)
    data = bytearray(path.read_bytes())
    data[data.index(source.encoded(0, 3, "image")) + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(SampleError, match=r"own, episode 0, frame 3: image: .*own-train.* has changed"):
        source.frames(0, [3], ["image"])
    source.frames(0, [4], ["image"])


def write(directory, change):
    """Writes two episodes; `change(steps)` spoils the second."""
    with rlds_write.Writer(directory, "own", fixtures.rlds_features()) as writer:
        for e in (0, 1):
            steps = fixtures.rlds_steps(MADE[e])
            metadata = {"episode_metadata": {"file_path": "", "has_wrist_image": True}}
            writer.add(change(steps) if e else steps, metadata)
    return directory


def test_an_episode_without_steps_is_a_problem_not_a_crash(tmp_path):
    source = open_own(write(tmp_path / "own", lambda steps: []))
    assert source.episode_lengths.tolist() == [7, 0] and "no steps" in source.problems[0].reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (pictures.encode_jpeg(MADE[0].cameras["image"][0])[:-200], "cut short"),
        (pictures.encode_png(MADE[0].cameras["image"][0])[:-200], "cut short"),
        (b"no picture", "no JPEG, PNG or WebP"),
        (pictures.encode_png(np.zeros((8, 8, 3), np.uint8)), "pixels beside"),
    ],
)
def test_a_damaged_picture_is_refused_by_name(tmp_path, data, reason):
    def change(steps):
        steps[2]["observation"]["image"] = data
        return steps

    source = open_own(write(tmp_path / "own", change))
    with pytest.raises(SampleError, match=f"own, episode 1, frame 2: image: .*{reason}"):
        source.frames(1, [1, 2], ["image"])
    assert source.frames(1, [3], ["image"])["image"].shape == (1, 48, 64, 3)


def test_text_that_is_not_utf8_is_refused_by_name(tmp_path):
    def change(steps):
        steps[1]["language_instruction"] = b"caf\xe9"
        return steps

    source = open_own(write(tmp_path / "own", change))
    with pytest.raises(SampleError, match="own, episode 1, frame 1: the instruction is not UTF-8"):
        source.task(1, 1)
    assert source.task(1, 0) == MADE[1].task


def test_an_absent_instruction_is_empty(tmp_path):
    def change(steps):
        return [step | {"language_instruction": "  "} for step in steps]

    source = open_own(write(tmp_path / "own", change))
    assert source.tasks(1, 0) == () and source.task(1, 0) == ""


def test_a_number_that_is_not_finite_is_refused_where_it_is_used(tmp_path):
    def change(steps):
        steps[3]["action"] = np.full(8, np.nan, np.float32)
        steps[0]["observation"]["state"] = np.full(8, np.inf, np.float32)
        return steps

    source = open_own(write(tmp_path / "own", change))
    with pytest.raises(SampleError, match="episode 1, frame 1: action channel 0 is nan at 2 steps"):
        source.chunk(1, 1, 3)
    with pytest.raises(SampleError, match="episode 1, frame 0: state channel 0 is inf"):
        source.state(1, 0)
    source.chunk(1, 0, 3)


def test_a_dataset_whose_every_record_is_damaged_is_refused(tmp_path):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    for path in directory.glob("*.tfrecord*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="all 3 episodes are damaged"):
        open_own(directory)


def test_records_of_other_features_are_problems(tmp_path):
    directory = write(tmp_path / "own", lambda steps: steps)
    path = next(directory.glob("*.array_record*"))
    described = json.loads((directory / "features.json").read_text())
    (directory / "features.json").write_text(json.dumps(described).replace('"8"', '"9"'))
    with pytest.raises(ValueError, match=f"all 2 episodes are damaged, the first: {path.name}: TFDS cannot decode"):
        open_own(directory)


def test_quarantined_frames_are_not_valid(tmp_path):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    path = tmp_path / "quarantine.jsonl"
    errors = [SampleError("own", 0, 3, "x"), SampleError("own", 1, None, "y"), SampleError("other", 2, 0, "z")]
    quarantine.append(path, map(quarantine.entry, errors))
    source = open_own(directory, quarantine=path)
    assert np.flatnonzero(~source.valid).tolist() == [3, 7, 8, 9, 10, 11]
    assert np.flatnonzero(~open_own(directory, quarantine=path, episodes=(1, 0)).valid).tolist() == [0, 1, 2, 3, 4, 8]


def test_tensors_stored_as_compressed_bytes_are_read(tmp_path):
    import tensorflow_datasets as tfds

    feature = tfds.features.Tensor(shape=(2,), dtype=np.float32, encoding="bytes")
    values = np.array([feature.encode_example(np.array([1, t], np.float32)) for t in range(3)], object)
    np.testing.assert_array_equal(rlds_index._numbers(feature, values, "x"), [[1, 0], [1, 1], [1, 2]])


def test_a_writer_refuses_to_overwrite(tmp_path):
    fixtures.rlds(tmp_path / "own", MADE)
    with pytest.raises(ValueError, match="a dataset already"):
        fixtures.rlds(tmp_path / "own", MADE)
    with pytest.raises(ValueError, match="file_format"):
        fixtures.rlds(tmp_path / "other", MADE, file_format="csv")
