import json
import pickle
import threading

import numpy as np
import pytest

from molmoact2_jax.data import quarantine
from molmoact2_jax.data.source import SampleError


def test_errors_survive_pickling_and_the_file(tmp_path):
    errors = [SampleError("réal", 3, 7, "gone"), SampleError("b", 1, None, "short")]
    again = [pickle.loads(pickle.dumps(error)) for error in errors]
    assert [str(error) for error in again] == ["réal, episode 3, frame 7: gone", "b, episode 1: short"]
    path = tmp_path / "new" / "q.jsonl"
    assert quarantine.read(path) == ()
    quarantine.append(path, [quarantine.entry(again[0])])
    quarantine.append(path, [quarantine.entry(again[1])])
    assert quarantine.read(path) == tuple(map(quarantine.entry, errors))


def test_writers_at_once_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "q.jsonl"

    def write(writer):
        for i in range(50):
            quarantine.append(path, [quarantine.Entry("d" * 300, writer, i, "r" * 300)])

    threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(e.episode, e.frame) for e in quarantine.read(path)} == {(w, i) for w in range(4) for i in range(50)}


def test_a_line_being_written_is_left_out_and_a_wrong_one_refused(tmp_path):
    path = tmp_path / "q.jsonl"
    quarantine.append(path, [quarantine.Entry("a", 1, 2, "x")])
    path.write_text(path.read_text() + '{"dataset": "a", "epi')
    assert len(quarantine.read(path)) == 1
    path.write_text(json.dumps({"dataset": "a"}) + "\n")
    with pytest.raises(ValueError, match=r"q.jsonl, line 1: .*expected"):
        quarantine.read(path)


def test_named_frames_are_not_valid_and_others_are():
    entries = [
        quarantine.Entry("a", 10, None, ""),
        quarantine.Entry("a", 12, 1, ""),
        quarantine.Entry("a", 12, 99, ""),  # an episode that has become shorter
        quarantine.Entry("a", 99, None, ""),  # or was not selected
        quarantine.Entry("b", 11, None, ""),
    ]
    mask = quarantine.valid(entries, "a", np.array([10, 11, 12]), np.array([2, 3, 2]))
    assert mask.tolist() == [False, False, True, True, True, True, False]
