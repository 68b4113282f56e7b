import json

import fixtures
import numpy as np
import pytest

from molmoact2_jax.data import pictures, rlds, rlds_write, table, tfrecord
from molmoact2_jax.data.source import SampleError

MADE = fixtures.episodes()


def open_own(directory, **options):
    return rlds.RLDSSource(directory, fixtures.ROW, table.Options(**options))


def shard(directory, number):
    return next(directory.glob(f"*-0000{number}-of*"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("features.json", lambda text: "{"),
        ("dataset_info.json", lambda text: "{"),
        ("features.json", lambda text: text.replace("features_dict.Feat", "features_duct.Feat")),
        ("dataset_info.json", lambda text: text.replace("{SPLIT}", "{SPLOT}")),
    ],
)
def test_damaged_metadata_is_one_error(tmp_path, name, change):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    (directory / name).write_text(change((directory / name).read_text()))
    with pytest.raises(ValueError, match=f"own: TFDS cannot read .*{name}"):
        open_own(directory)


def test_files_of_another_format_are_refused_by_its_name(tmp_path):
    directory = fixtures.rlds(tmp_path / "own", MADE)
    path = directory / "dataset_info.json"
    path.write_text(path.read_text().replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(ValueError, match="files of format 'riegeli', expected tfrecord or array_record"):
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
    np.testing.assert_array_equal(source.frames(1, [4], ["image"])["image"][0], MADE[1].cameras["image"][4])


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
