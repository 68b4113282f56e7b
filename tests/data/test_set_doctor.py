"""The doctor of multimodal sets finds what training would meet, and training honours what it quarantines."""

import json

import checkpoints
import numpy as np
import pytest

from molmoact2_jax.data import doctor, pictures, quarantine, set_doctor, vlm, vlm_registry
from molmoact2_jax.data.example import Skipped

THOROUGH = doctor.Options(budget=1.0)


@pytest.fixture(scope="module")
def encoding(golden):
    return checkpoints.load(golden / "tiny").encoding


def record(i):
    messages = [{"role": "user", "content": f"How many cups in picture {i}?"}, {"role": "assistant", "content": str(i)}]
    return {"images": [f"{i}.png"], "messages": messages}


@pytest.fixture
def root(tmp_path):
    """A directory of sets with one of them, of twelve records with a picture each."""
    home = tmp_path / "sets" / "sat"
    home.mkdir(parents=True)
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        (home / f"{i}.png").write_bytes(pictures.encode_png(pixels))
    write(home, [record(i) for i in range(12)])
    return tmp_path / "sets"


def write(home, records):
    (home / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def examined(root, encoding, options=THOROUGH, known=()):
    return set_doctor.examine(vlm.Set.open("sat", root / "sat"), encoding, options, known)


def spoil(home):
    """Damages records 1 to 7 in seven ways; 8 repeats 0, 9 has too many pictures."""
    records = [record(i) for i in range(12)]
    (home / "1.png").unlink()
    (home / "2.png").write_bytes(b"")
    (home / "3.png").write_bytes((home / "3.png").read_bytes()[:200])
    records[4]["messages"] = records[4]["messages"][:1]
    records[5]["messages"][1]["content"] = "  "
    del records[6]["messages"]
    records[8], records[9]["images"] = records[0], ["0.png"] * 6
    write(home, records)
    lines = (home / "train.jsonl").read_bytes().splitlines(keepends=True)
    lines[7] = lines[7].replace(b"cups", b"c\xffps")
    (home / "train.jsonl").write_bytes(b"".join(lines))


def test_a_sound_set_has_no_findings(root, encoding):
    report = examined(root, encoding)
    assert report.found == () and report.examined == report.episodes == 12 and not report.stopped


def test_each_damage_is_found_by_record_and_the_second_examination_is_clean(root, encoding):
    spoil(root / "sat")
    report = examined(root, encoding)
    errors = {f.episode: f.check for f in report.found if f.severity == "error"}
    assert errors == {1: "picture", 2: "picture", 3: "picture", 4: "record", 5: "no language", 6: "record", 7: "record"}
    assert [(f.check, f.episode) for f in report.found if f.severity == "warning"] == [("duplicate", 8)]
    assert [(f.message, f.episode) for f in report.found if f.severity == "note"] == [("more than 5 pictures", 9)]
    assert [entry.episode for entry in report.entries] == list(range(1, 8)) and report.lost == 7 / 12
    again = examined(root, encoding, doctor.Options(budget=0.0), report.entries)
    assert again.counts["error"] == 0 and again.quarantined == 7 and not again.stopped


def test_training_honours_the_file_in_the_directory_of_the_sets(root, encoding):
    spoil(root / "sat")
    doctor.quarantine_new(root / vlm_registry.QUARANTINE, examined(root, encoding))
    quarantine.append(root / vlm_registry.QUARANTINE, [quarantine.Entry("another", 0, None, "")])
    (dataset,) = vlm_registry.open_sets(root, encoding).datasets
    left_out = []
    for i in range(len(dataset)):
        try:
            dataset.pixels(dataset.example(i, 0))
        except Skipped as skipped:
            left_out.append((i, skipped.reason))
    assert left_out == [(i, "quarantined") for i in range(1, 8)] + [(9, "more than 5 pictures")]


def test_it_stops_over_the_budget_and_touches_no_picture_unless_asked(root, encoding):
    spoil(root / "sat")
    report = examined(root, encoding, doctor.Options(every=0, budget=0.2))
    assert "sat: 4 of 12 records have errors (33.3%), above the budget of 20.0%" in report.stopped
    assert {f.check for f in report.found if f.severity == "error"} == {"record", "no language"}
