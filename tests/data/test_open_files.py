import pickle
import threading

import fixtures
import numpy as np

from molmoact2_jax.data import archive, open_files, pictures, rlds, row_groups, table, video

MADE = fixtures.episodes(lengths=(4, 3))


def pools():
    """Names of the pools of threads in this process."""
    return {thread.name.rpartition("_")[0] for thread in threading.enumerate() if "ThreadPool" in thread.name}


def test_sources_share_what_they_keep_open_also_after_pickling(tmp_path):
    before = pools()  # of other tests
    files = open_files.OpenFiles(decoders=video.Decoders(limit=2))
    options = table.Options(files=files)
    roots = [fixtures.lerobot(tmp_path / str(i), MADE) for i in range(3)]
    sources = [fixtures.open_lerobot(root, files=files) for root in roots]
    sources.append(rlds.RLDSSource(fixtures.rlds(tmp_path / "own", MADE), fixtures.ROW, options))
    for again in (sources, pickle.loads(pickle.dumps(sources))):
        assert len({id(source._files) for source in again}) == 1
        for source in again:
            for e in (0, 1):
                assert fixtures.code(source.frames(e, [2], source.cameras)[source.cameras[1]][0]) == (e, 2, 1)
        assert len(again[0]._files.decoders._open) == 2
    names = pools() - before
    assert len(names) == 2  # of the sources made first, and of their copies: not one for each source
    for group in (sources, again):
        group[0].close()
    assert not pools() & names


def test_archives_keep_the_last_records_within_their_limit(tmp_path):
    path = tmp_path / "x.array_record"
    assert archive.write(path, [bytes([i]) * 100 for i in range(10)]) == archive.count(path) == 10
    records = archive.Archive(keep_bytes=250)
    for i in (0, 1, 0, 2, 9):
        assert records.read(str(path), i) == bytes([i]) * 100
    assert [number for _, number in records._kept] == [2, 9]
    records.close()
    assert records.read(str(path), 3) == b"\x03" * 100


def test_row_groups_are_kept_within_their_limit(tmp_path):
    root = fixtures.lerobot(tmp_path / "own", MADE, dtype="image")
    path, (view, other) = str(root / "data/chunk-000/file-000.parquet"), fixtures.VIEWS
    groups = row_groups.RowGroups(keep_bytes=1)
    first = groups.picture(path, view, 0)
    assert groups.picture(path, other, 5) != first == groups.picture(path, view, 0)
    assert len(groups._groups) == 1 and np.array_equal(
        MADE[1].cameras["image"][0], pictures.decode(groups.picture(path, view, 4))
    )
