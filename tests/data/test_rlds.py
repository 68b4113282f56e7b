import dataclasses
import pathlib
import pickle

import fixtures
import numpy as np
import pytest

from molmoact2_jax.data import archive, oxe, quarantine, rlds, rlds_index, rlds_write, table, tfrecord
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
    wide = dataclasses.replace(fixtures.ROW, action=(oxe.Field("steps/action", tuple("abc"), "m", start=6),))
    with pytest.raises(ValueError, match="own: steps/action: 8 channels, expected 9 or more by row 'own'"):
        rlds.RLDSSource(directory, wide)
    with pytest.raises(ValueError, match="split 'test'"):
        rlds.RLDSSource(directory, fixtures.ROW, split="test")
    with pytest.raises(ValueError, match=r"features\.json"):
        rlds.RLDSSource(tmp_path / "nothing", fixtures.ROW)


def test_the_only_version_below_a_directory_is_opened(tmp_path):
    fixtures.rlds(tmp_path / "own" / "1.0.0", MADE)
    assert_equal(open_own(tmp_path / "own"))


def test_quarantined_frames_are_not_valid(tmp_path):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    path = tmp_path / "quarantine.jsonl"
    errors = [SampleError("own", 0, 3, "x"), SampleError("own", 1, None, "y"), SampleError("other", 2, 0, "z")]
    quarantine.append(path, map(quarantine.entry, errors))
    source = open_own(directory, quarantine=path)
    assert np.flatnonzero(~source.valid).tolist() == [3, 7, 8, 9, 10, 11]
    assert np.flatnonzero(~open_own(directory, quarantine=path, episodes=(1, 0)).valid).tolist() == [0, 1, 2, 3, 4, 8]


def test_a_chosen_name_finds_what_was_quarantined_under_the_usual_one(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine.append(path, [quarantine.Entry("own", 0, 3, "x"), quarantine.Entry("ann/own", 1, 0, "y")])
    root = fixtures.rlds(tmp_path / "a", MADE)
    assert np.flatnonzero(~open_own(root, quarantine=path, name="ann/own").valid).tolist() == [3, 7]
    assert np.flatnonzero(~open_own(root, quarantine=path).valid).tolist() == [3]


def test_tensors_stored_as_compressed_bytes_are_read(tmp_path):
    import tensorflow_datasets as tfds

    feature = tfds.features.Tensor(shape=(2,), dtype=np.float32, encoding="bytes")
    values = np.array([feature.encode_example(np.array([1, t], np.float32)) for t in range(3)], object)
    np.testing.assert_array_equal(rlds_index._numbers(feature, values, "x"), [[1, 0], [1, 1], [1, 2]])
    assert rlds_index._numbers(feature, values[:0], "x").shape == (0, 2)
    packed = tfds.features.Tensor(shape=(2,), dtype=np.float32, encoding="zlib")
    with pytest.raises(ValueError, match="x cannot be decoded"):
        rlds_index._numbers(packed, np.array([b"no stream"], object), "x")


def test_a_writer_refuses_to_overwrite(tmp_path):
    fixtures.rlds(tmp_path / "own", MADE)
    with pytest.raises(ValueError, match="a dataset already"):
        fixtures.rlds(tmp_path / "own", MADE)
    with pytest.raises(ValueError, match="no episodes, expected at least one"):
        rlds_write.Writer(tmp_path / "none", "own", fixtures.rlds_features()).close()
    with pytest.raises(ValueError, match="file_format"):
        fixtures.rlds(tmp_path / "other", MADE, file_format="csv")


def test_features_that_nobody_reads_need_not_be_decodable(tmp_path):
    import tensorflow_datasets as tfds

    kinds = dict(fixtures.rlds_features()["steps"].feature.items())
    kinds["contacts"] = tfds.features.Tensor(shape=(None,), dtype=np.float32)  # TFDS reads it only with TensorFlow
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(kinds)})
    with rlds_write.Writer(tmp_path / "own", "own", features) as writer:
        for made in MADE:
            writer.add(step | {"contacts": np.ones(3, np.float32)} for step in fixtures.rlds_steps(made))
    (path,) = (tmp_path / "own").glob("*-of-*")
    with pytest.raises(ValueError, match="unknown dimension"):
        features.deserialize_example_np(archive.Archive().read(str(path), 0))
    assert_equal(open_own(tmp_path / "own"))


@pytest.fixture
def by_tensorflow(tmp_path):
    """A copy of the dataset that TensorFlow wrote (`by_tensorflow/make.py`), and what it means."""
    directory = fixtures.copy(pathlib.Path(__file__).parent / "by_tensorflow/own", tmp_path / "own")
    seen = "steps/observation"
    row = dataclasses.replace(
        oxe.TEMPLATE,
        cameras=(
            oxe.Camera("image", f"{seen}/image", "episode_metadata/has_image"),
            oxe.Camera("wrist_image", f"{seen}/wrist_image"),
        ),
        state=tuple(oxe.Field(f"{seen}/{name}", tuple("abc"), "1") for name in ("state", "effort", "present/xyz")),
        action=(oxe.Field("steps/action", ("a", "b"), "1"),),
    )
    return directory, rlds.RLDSSource(directory, row)


def test_a_dataset_written_by_tensorflow_reads_as_it_was_made(by_tensorflow):
    _, source = by_tensorflow
    assert sorted(source.episode_lengths.tolist()) == [1, 3, 4] and source.problems == ()
    for e, length in enumerate(source.episode_lengths.tolist()):
        made = {4: 0, 1: 1, 3: 2}[length]
        t = np.arange(length)
        state = np.stack([0 * t + made, t, 0 * t - 1, 0 * t + made, t, 0 * t + 0.5, t, t, 0 * t + made], axis=1)
        np.testing.assert_array_equal(source.column("state", e), state.astype(np.float32))
        np.testing.assert_allclose(source.column("action", e), np.stack([0 * t + made + 0.1, t + 0.2], 1), rtol=1e-6)
        assert source.column("steps/phase", e).tolist() == (t % 2).tolist()
        assert source.tasks(e, 0) == (f"öffne Schublade {made}",)
        assert ("image" in source.cameras_of(e)) == (made != 1)
        wrist = source.frames(e, t.tolist(), ["wrist_image"])["wrist_image"]
        assert wrist.shape == (length, 10 + made, 12, 3)
        np.testing.assert_array_equal(wrist[:, 0, 0, 0], 10 * made + t)


def test_pictures_that_tensorflow_wrote_equal_the_decoder_of_tfds(by_tensorflow):
    import tensorflow_datasets as tfds

    directory, source = by_tensorflow
    info = tfds.builder_from_directory(directory).info
    (path,) = info.splits["train"].filepaths
    found = tfrecord.scan(path)
    with open(path, "rb") as file:
        raw = [tfrecord.read(file, int(o), int(n)) for o, n in zip(found.offsets, found.lengths)]
    for e, record in enumerate(raw):
        steps = list(info.features.deserialize_example_np(record)["steps"])
        for camera in source.cameras_of(e):
            ours = source.frames(e, list(range(len(steps))), [camera])[camera]
            np.testing.assert_array_equal(ours, [step["observation"][camera] for step in steps])


@pytest.mark.parametrize(
    "change",
    [
        lambda step: step.pop("action"),
        lambda step: step.update(action=np.zeros(7, np.float32)),
        lambda step: step.update(other=1),
        lambda step: step["observation"].update(image=np.zeros((4, 4, 3), np.uint8)),
    ],
)
def test_a_writer_refuses_steps_of_other_features_in_words(tmp_path, change):
    steps = fixtures.rlds_steps(MADE[0])
    change(steps[1])
    writer = rlds_write.Writer(tmp_path / "own", "own", fixtures.rlds_features())
    with pytest.raises(ValueError, match=r"own: TFDS cannot encode the episode: .* Give every feature"):
        writer.add(steps, {"episode_metadata": {"file_path": "", "has_wrist_image": True}})
