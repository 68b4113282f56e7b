import concurrent.futures
import os
import pickle
import time

import numpy as np

from molmoact2_jax.data import store

ARRAYS = {
    "a/b": np.arange(6, dtype=np.float64).reshape(2, 3),
    "none": np.zeros((0, 4), np.int8),
    "flag": np.array([True]),
}


def test_arrays_and_meta_read_back_mapped(tmp_path):
    found = store.save(tmp_path / "x", "s1", ARRAYS, {"k": [1]})
    for kept in (found, pickle.loads(pickle.dumps(found)), store.load(tmp_path / "x", "s1")):
        assert kept.meta == {"k": [1]} and kept.names() == sorted(ARRAYS) and "a/b" in kept and "z" not in kept
        for name, values in ARRAYS.items():
            np.testing.assert_array_equal(kept[name], values)
            assert (kept[name].dtype == values.dtype and not kept[name].flags.owndata) or values.size == 0


def test_another_stamp_is_another_cache_and_old_ones_go(tmp_path):
    store.save(tmp_path / "x", "old", ARRAYS, {})
    assert store.load(tmp_path / "x", "new") is None
    (old,) = tmp_path.iterdir()
    os.utime(old, (time.time() - 1e6,) * 2)
    store.save(tmp_path / "x", "new", ARRAYS, {})
    assert store.load(tmp_path / "x", "old") is None and store.load(tmp_path / "x", "new") is not None


def test_writers_at_once_leave_one_whole_cache(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: store.save(tmp_path / "x", "s", ARRAYS, {}), range(16)))
    assert len({kept.directory for kept in made}) == 1
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(store.load(tmp_path / "x", "s")["a/b"], ARRAYS["a/b"])


def test_stamps_change_with_files_and_digests_only_with_content(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"1")
    stamp, digest = store.stamp([path], 1), store.digest([path], tmp_path, 1)
    os.utime(path, (1, 1))
    assert store.stamp([path], 1) != stamp and store.digest([path], tmp_path, 1) == digest
    assert store.digest([path], tmp_path, 2) != digest
    path.unlink()
    assert store.digest([path], tmp_path, 1) != digest


def test_caches_lie_beside_the_data_or_where_asked(tmp_path):
    assert store.place(tmp_path, "x", None) == tmp_path / ".molmoact2" / "x"
    elsewhere = store.place(tmp_path, "x", tmp_path / "cache")
    assert elsewhere.parent.parent == tmp_path / "cache"
    assert elsewhere != store.place(tmp_path / "..", "x", tmp_path / "cache")
