import dataclasses
import json
import pickle

import fixtures
import numpy as np
import pytest

from molmoact2_jax.data import archive, catalog, images, pictures, quarantine, repack, rlds, table
from molmoact2_jax.data.source import SampleError

MADE = fixtures.episodes()
SMALL = repack.Plan("png", episodes_per_shard=2)


@pytest.fixture
def source(tmp_path):
    camera = dataclasses.replace(fixtures.ROW.cameras[1], present="episode_metadata/has_wrist_image")
    row = dataclasses.replace(fixtures.ROW, cameras=(fixtures.ROW.cameras[0], camera))
    return rlds.RLDSSource(fixtures.rlds(tmp_path / "own", MADE), row)


def assert_same(copy, source, change=lambda pixels: pixels):
    assert (copy.name, copy.fps, copy.cameras, copy.num_frames) == (source.name, source.fps, source.cameras, 21)
    assert copy.state_names == source.state_names and copy.action_names == source.action_names
    assert copy.column_shapes() == source.column_shapes()
    for name in source.column_shapes():
        np.testing.assert_array_equal(copy.columns([name])[name], source.columns([name])[name])
    for e in range(source.num_episodes):
        assert copy.cameras_of(e) == source.cameras_of(e) and copy.annotation(e) == source.annotation(e)
        np.testing.assert_array_equal(copy.same_task(e), source.same_task(e))
        for t in (4, 0):
            assert copy.tasks(e, t) == source.tasks(e, t)
            for camera in source.cameras_of(e):
                expected = change(source.frames(e, [t], [camera])[camera][0])
                np.testing.assert_array_equal(copy.frames(e, [t], [camera])[camera][0], expected)


@pytest.mark.parametrize("encoding", ["stored", "png", "raw"])
def test_exact_encodings_give_the_same_dataset(source, tmp_path, encoding):
    plan = repack.Plan(encoding, episodes_per_shard=2)
    copy = catalog.open_source(repack.repack(source, tmp_path / "copy", plan))
    assert_same(copy, source)
    assert_same(pickle.loads(pickle.dumps(copy)), source)


def test_stored_pictures_are_copied_byte_for_byte(tmp_path):
    source = rlds.RLDSSource(fixtures.rlds(tmp_path / "own", MADE, encoding="jpeg"), fixtures.ROW)
    copy = catalog.open_source(repack.repack(source, tmp_path / "copy", repack.Plan("stored")))
    assert copy.encoded(2, 3, "image") == source.encoded(2, 3, "image")


def test_pictures_are_resized_as_for_the_model(source, tmp_path):
    plan = repack.Plan("raw", size=(56, 70))
    copy = catalog.open_source(repack.repack(source, tmp_path / "copy", plan))
    assert_same(copy, source, lambda pixels: images.resize(pixels, (56, 70)))


def test_jpeg_equals_its_own_decoder(source, tmp_path):
    copy = catalog.open_source(repack.repack(source, tmp_path / "copy", repack.Plan("jpeg", quality=90)))
    assert_same(copy, source, lambda pixels: pictures.decode(pictures.encode_jpeg(pixels, 90)))


def test_lerobot_with_depth_and_language_repacks(tmp_path):
    source = fixtures.open_lerobot(fixtures.lerobot(tmp_path / "own", MADE))
    source.annotation = lambda episode: "grasp" if episode == 1 else None
    source.depth_codes = lambda e, t, cameras: np.full(100, t) if fixtures.VIEWS[1] in cameras else None
    copy = catalog.open_source(repack.repack(source, tmp_path / "copy", SMALL))
    assert_same(copy, source)
    assert copy.depth_codes(2, 5, fixtures.VIEWS).tolist() == [5] * 100
    assert copy.depth_codes(2, 5, fixtures.VIEWS[:1]) is None


def test_repacking_goes_on_after_an_interruption(source, tmp_path, monkeypatch):
    written, room = [], [1]
    real = archive.write

    def write(path, records, **options):
        if len(written) == room[0]:
            raise OSError("no space left on device")
        written.append(path.name)
        return real(path, records, **options)

    monkeypatch.setattr(archive, "write", write)
    with pytest.raises(OSError, match="no space"):
        repack.repack(source, tmp_path / "copy", SMALL)
    with pytest.raises(ValueError, match="no dataset"):
        catalog.open_source(tmp_path / "copy")
    with pytest.raises(ValueError, match="begun from another dataset or plan"):
        repack.repack(source, tmp_path / "copy", repack.Plan("raw"))
    room[0], told = 9, []
    repack.repack(source, tmp_path / "copy", SMALL, workers=2, progress=lambda *given: told.append(given))
    assert len(set(written)) == len(written) == 2
    assert len(told) == 2 and told[-1] == (3, 3)  # threads: the shard that was there or the new one is counted first
    assert_same(catalog.open_source(tmp_path / "copy"), source)
    with pytest.raises(ValueError, match="finished already"):
        repack.repack(source, tmp_path / "copy", SMALL)


def test_selection_works_on_a_repacked_dataset(source, tmp_path):
    repack.repack(source, tmp_path / "copy", SMALL)
    copy = catalog.open_source(f"{tmp_path / 'copy'}@2,0")
    assert copy.episode_ids.tolist() == [2, 0]
    assert [fixtures.code(copy.frames(e, [3], ["image"])["image"][0])[0] for e in (0, 1)] == [2, 0]
    with pytest.raises(SampleError, match="episode 2, frame 1: no camera 'x'"):
        copy.frames(0, [1], ["x"])


class Damaged(rlds.RLDSSource):
    """A source of which some pictures and one instruction cannot be read."""

    def encoded(self, episode, frame, camera):
        if (episode, frame, camera) in ((0, 3, "image"), (2, 0, "wrist_image")):
            raise self.error(episode, frame, f"{camera}: gone")
        return super().encoded(episode, frame, camera)

    def tasks(self, episode, frame):
        if (episode, frame) == (1, 2):
            raise self.error(episode, frame, "not UTF-8")
        return super().tasks(episode, frame)


@pytest.mark.parametrize("encoding", ["stored", "png"])
def test_what_could_not_be_read_is_named_again_by_the_copy(tmp_path, encoding):
    source = Damaged(fixtures.rlds(tmp_path / "own", MADE), fixtures.ROW)
    with pytest.raises(ValueError, match="unreadable pictures, budget 0"):
        repack.repack(source, tmp_path / "strict", repack.Plan(encoding))
    copy = catalog.open_source(repack.repack(source, tmp_path / "copy", repack.Plan(encoding, budget=0.05)))
    with pytest.raises(SampleError, match=r"own, episode 0, frame 3: image: .*gone"):
        copy.frames(0, [3], ["image"])
    with pytest.raises(SampleError, match="own, episode 1, frame 2: not UTF-8"):
        copy.tasks(1, 2)
    copy.frames(0, [2, 4], ["image"])
    assert copy.frames(0, [3], ["wrist_image"])["wrist_image"].shape == (1, 48, 64, 3)


def test_pictures_of_quarantined_frames_do_not_count_and_a_raised_budget_goes_on(tmp_path):
    def opened(*entries):
        quarantine.append(tmp_path / "q.jsonl", entries)
        return Damaged(directory, fixtures.ROW, table.Options(quarantine=tmp_path / "q.jsonl"))

    directory = fixtures.rlds(tmp_path / "own", MADE)
    with pytest.raises(ValueError, match=r"1 unreadable pictures, budget 0\. .*frame 0: .*--quarantine FILE"):
        repack.repack(opened(quarantine.Entry("own", 0, 3, "known")), tmp_path / "a", SMALL)
    repack.repack(opened(quarantine.Entry("own", 2, None, "known")), tmp_path / "a", SMALL)
    with pytest.raises(ValueError, match="budget 0"):
        repack.repack(Damaged(directory, fixtures.ROW), tmp_path / "b", SMALL)
    repack.repack(Damaged(directory, fixtures.ROW), tmp_path / "b", dataclasses.replace(SMALL, budget=0.1))


def test_progress_counts_episodes_as_they_are_written(source, tmp_path):
    told = []
    repack.repack(source, tmp_path / "copy", workers=2, progress=lambda *given: told.append(given))
    assert told == [(1, 3), (2, 3), (3, 3)]  # all of them are in one file


def test_a_damaged_or_missing_file_of_the_copy_is_refused(source, tmp_path):
    root = repack.repack(source, tmp_path / "copy", SMALL)
    path = root / repack.shard_name(0)
    data = bytearray(path.read_bytes())
    place = data.index(catalog.open_source(root).encoded(0, 0, "image")) + 20
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(SampleError, match=r"own, episode 0, frame 0: image: .*pictures-00000.* is damaged"):
        catalog.open_source(root).frames(0, [0], ["image"])
    (root / repack.shard_name(1)).unlink()
    with pytest.raises(SampleError, match=r"episode 2, frame 1: .*pictures-00001.*missing"):
        catalog.open_source(root).frames(2, [1], ["image"])


def test_plans_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="encoding 'gif'"):
        repack.Plan("gif")
    with pytest.raises(ValueError, match="expected None"):
        repack.Plan("stored", size=(378, 378))


def test_a_plan_is_written_beside_the_pictures(source, tmp_path):
    root = repack.repack(source, tmp_path / "copy", SMALL)
    manifest = json.loads((root / repack.MANIFEST).read_text())
    assert manifest["source"] == source.digest and manifest["plan"]["encoding"] == "png" and manifest["damage"] == []
