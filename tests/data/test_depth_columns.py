import dataclasses
import itertools
import json
import types

import numpy as np
import pyarrow.parquet as pq
import pytest

from molmoact2_jax.data import (
    depth,
    depth_columns,
    depth_companion,
    depth_maps,
    depth_scenes,
    lerobot,
    lerobot_files,
    lerobot_meta,
    lerobot_write,
    oxe,
)

CAMERA = "observation.images.top"
LENGTHS = (5, 3, 4)
SIZE = 64
TAG = oxe.Tag("own", 2, "arm", oxe.JOINTS)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A dataset of three episodes, each in a table of its own, and the metric depth of every frame."""
    root = tmp_path_factory.mktemp("lerobot")
    features = {"observation.state": lerobot_write.vector(("a", "b")), "action": lerobot_write.vector(("a", "b")),
                CAMERA: lerobot_write.camera(SIZE, SIZE, dtype="image")}  # fmt: skip
    writer = lerobot_write.Writer(root / "data", fps=10, features=features)
    for episode, length in enumerate(LENGTHS):
        frames = list(depth_scenes.episode(np.random.default_rng(episode), length, SIZE))
        for picture, _ in frames:
            writer.add({"observation.state": np.zeros(2), "action": np.ones(2), CAMERA: picture}, "move")
        writer.end_episode()
        (root / "maps").mkdir(exist_ok=True)
        np.save(root / f"maps/episode_{episode:06}.npy", np.stack([values for _, values in frames]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_files, "DATA_MB", 0)
        writer.finalize()
    return root


def cell_means(maps):
    means = maps.reshape(len(maps), 10, 32, 10, 32).mean(axis=(2, 4)).reshape(len(maps), 100)
    return ((means + 1) * 63.5).astype(int)


def annotator(root, encode=cell_means, kind="metric", frames=None):
    source = lerobot.LeRobotSource(root / "data", TAG)
    settings = depth_companion.Settings(CAMERA, kind, "codec")
    meta = lerobot_meta.read(root / "data")
    if frames is not None:
        source.frames = types.MethodType(frames, source)
    return depth_columns.Annotator(source, meta, depth_maps.MapFiles(root / "maps"), encode, settings)


def read(directory):
    meta = lerobot_meta.read(directory)
    return [depth_companion.read(directory, path, int(i)) for path, i in zip(meta.data, meta.ids, strict=True)]


def test_a_companion_has_the_codes_masks_and_buffers_of_the_frames(recorded, tmp_path):
    maker = annotator(recorded)
    seen = []
    report = depth_columns.annotate(maker, tmp_path / "out", progress=lambda *at: seen.append(at))
    assert (report.files, report.kept, report.frames, report.unread, report.missing) == (3, 0, 12, 0, 0)
    assert seen == [(5, 12), (8, 12), (12, 12)]
    for episode, columns in enumerate(read(tmp_path / "out")):
        values = np.load(recorded / f"maps/episode_{episode:06}.npy")
        codes = cell_means(np.stack([depth_maps.prepare(v, "metric") for v in values]))
        np.testing.assert_array_equal(columns.codes, codes)
        pictures = maker.source.frames(episode, range(LENGTHS[episode]), [CAMERA])[CAMERA]
        masks = [np.ones(100, bool)] + [depth.annotation_mask(a, b) for a, b in itertools.pairwise(pictures)]
        np.testing.assert_array_equal(columns.mask, masks)
        assert 0 < columns.mask[1:].mean() < 0.5  # one object moves
        for frame in range(1, len(codes)):
            expected = np.where(columns.mask[frame], codes[frame], columns.buffer[frame - 1])
            np.testing.assert_array_equal(columns.buffer[frame], expected)
    rates = np.concatenate([columns.mask[1:].mean(axis=1) for columns in read(tmp_path / "out")])
    np.testing.assert_allclose(report.changed, rates.mean())
    used = np.unique(np.concatenate([columns.codes for columns in read(tmp_path / "out")]))
    np.testing.assert_allclose(report.used, len(used) / 128)


def test_training_reads_the_buffer_and_the_rest_of_the_rows_is_untouched(recorded, tmp_path):
    depth_columns.annotate(annotator(recorded), tmp_path / "out")
    source = lerobot.LeRobotSource(recorded / "data", TAG, depth={"": tmp_path / "out"})
    columns = read(tmp_path / "out")
    np.testing.assert_array_equal(source.depth_codes(2, 3, [CAMERA]), columns[2].buffer[3])
    meta = lerobot_meta.read(recorded / "data")
    for path in meta.data:
        before, after = pq.read_table(meta.root / path), pq.read_table(tmp_path / "out" / path)
        assert after.select(before.column_names).equals(before)
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    released = {"vae_image_size": 320, "patch_size": 32, "grid_h": 10, "grid_w": 10, "num_tokens": 128}
    released |= {"cosine_threshold": 0.996, "image_key": CAMERA}
    assert info["depth_vae"].items() >= released.items()
    assert info["features"]["depth_codes"] == {"dtype": "int16", "shape": [100], "names": None}
    assert info["total_frames"] == 12
    assert depth_companion.recognise(tmp_path / "out")
    assert not depth_companion.recognise(recorded / "data") and not depth_companion.recognise(tmp_path)


def test_an_interrupted_run_goes_on_with_the_next_table(recorded, tmp_path):
    calls = []

    def failing(maps):
        calls.append(len(maps))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return cell_means(maps)

    with pytest.raises(KeyboardInterrupt):
        depth_columns.annotate(annotator(recorded, failing), tmp_path / "out")
    first = (tmp_path / "out" / lerobot_meta.read(recorded / "data").data[0]).stat().st_mtime_ns
    report = depth_columns.annotate(annotator(recorded, failing), tmp_path / "out")
    assert (report.files, report.kept, report.frames, calls) == (2, 1, 7, [5, 3, 3, 4])
    assert (tmp_path / "out" / lerobot_meta.read(recorded / "data").data[0]).stat().st_mtime_ns == first
    depth_columns.annotate(annotator(recorded), tmp_path / "whole")
    for one, other in zip(read(tmp_path / "out"), read(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(one.buffer, other.buffer)
    again = depth_columns.annotate(annotator(recorded, failing), tmp_path / "out")
    assert (again.files, again.kept, again.used, again.changed) == (0, 3, None, None)


def test_shards_make_the_whole(recorded, tmp_path):
    reports = [depth_columns.annotate(annotator(recorded), tmp_path / "out", shard=(i, 2)) for i in (1, 0)]
    assert [report.frames for report in reports] == [3, 9]
    assert [len(columns.codes) for columns in read(tmp_path / "out")] == list(LENGTHS)


def test_other_settings_do_not_mix_into_a_companion(recorded, tmp_path):
    depth_columns.annotate(annotator(recorded), tmp_path / "out")
    with pytest.raises(ValueError, match=r"begun with .*metric.*expected .*disparity"):
        depth_columns.annotate(annotator(recorded, kind="disparity"), tmp_path / "out")


def test_a_picture_that_cannot_be_read_is_counted_and_its_neighbours_change(recorded, tmp_path):
    def frames(self, episode, span, cameras):
        if episode == 0 and 2 in span:
            raise self.error(episode, 2, "damaged")
        return lerobot.LeRobotSource.frames(self, episode, span, cameras)

    report = depth_columns.annotate(annotator(recorded, frames=frames), tmp_path / "out")
    assert (report.unread, report.frames) == (1, 12)
    mask = read(tmp_path / "out")[0].mask
    np.testing.assert_array_equal(mask.all(axis=1), [True, False, True, True, False])


def test_an_episode_that_cannot_be_read_has_no_codes_and_training_says_so(recorded, tmp_path):
    maker = annotator(recorded)
    maker.source.episode_lengths = np.array([5, 0, 4])
    report = depth_columns.annotate(maker, tmp_path / "out")
    assert (report.missing, report.frames) == (3, 9)
    assert (read(tmp_path / "out")[1].codes == depth_columns.MISSING).all()
    source = lerobot.LeRobotSource(recorded / "data", TAG, depth={"": tmp_path / "out"})
    with pytest.raises(ValueError, match=r"codes from -1 to -1, expected 100 in \[0, 128\)"):
        source.depth_codes(1, 0, [CAMERA])


def test_a_map_that_means_nothing_is_named(recorded, tmp_path):
    maker = dataclasses.replace(annotator(recorded), maps=lambda episode, frames: [np.zeros((4, 4))] * len(frames))
    with pytest.raises(ValueError, match=r"episode 0, frame 0: .*no finite value"):
        depth_columns.annotate(maker, tmp_path / "out")


def test_a_frame_without_a_map_has_no_codes_and_leaves_none_behind(recorded, tmp_path):
    files = depth_maps.MapFiles(recorded / "maps")

    def maps(episode, frames):
        found = files(episode, frames)
        return [None if (episode, i) == (0, 2) else values for i, values in zip(frames, found, strict=True)]

    report = depth_columns.annotate(dataclasses.replace(annotator(recorded), maps=maps), tmp_path / "out")
    assert (report.missing, report.frames) == (1, 11)
    columns = read(tmp_path / "out")[0]
    np.testing.assert_array_equal((columns.codes == depth_columns.MISSING).all(axis=1), np.arange(5) == 2)
    np.testing.assert_array_equal((columns.buffer < 0).any(axis=1), np.arange(5) == 2)
    np.testing.assert_array_equal(columns.buffer[3], columns.codes[3])


def test_the_description_that_the_datasets_library_reads_lists_the_columns(recorded):
    rows = pq.read_table(recorded / "data" / lerobot_meta.read(recorded / "data").data[0])
    described = {"info": {"features": {"action": {"_type": "Sequence"}}}}
    rows = rows.replace_schema_metadata({"huggingface": json.dumps(described)})
    ones = np.ones((5, 100), np.int16)
    joined = depth_companion.joined(rows, depth_companion.Columns(ones, ones, ones.astype(bool)))
    features = json.loads(joined.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == ["action", "depth_codes", "buffer_codes", "depth_updated_mask"]
    assert features["depth_updated_mask"]["feature"]["dtype"] == "bool"
