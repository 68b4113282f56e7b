import dataclasses
import json

import damages
import formats
import numpy as np
import pytest

from molmoact2_jax.data import checks, doctor, quarantine
from molmoact2_jax.data.source import SampleError

THOROUGH = doctor.Options(budget=1.0, workers=1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Paths of sound datasets, {kind: directory}; copied before they are damaged."""
    return formats.sound_copies(tmp_path_factory.mktemp("sound"))


def read_all(source):
    """Reads all that training reads of every frame; returns the frames that raise."""
    refused = set()
    for index in np.flatnonzero(source.valid).tolist():
        episode, frame = source.locate(index)
        try:
            source.state(episode, frame)
            source.chunk(episode, frame, formats.TAG.horizon)
            source.tasks(episode, frame)
            source.frames(episode, [frame], source.cameras_of(episode))
        except SampleError as error:
            refused.add((error.episode, error.frame))
    return refused


@pytest.mark.parametrize("kind", formats.KINDS)
def test_a_sound_dataset_has_neither_errors_nor_warnings(kind, sound):
    report = doctor.examine(formats.open_source(kind, sound[kind]), THOROUGH)
    assert [f for f in report.found if f.severity != "note"] == []
    assert report.examined == 4 and report.lost == 0 and not report.entries


@pytest.mark.parametrize(("name", "kind"), damages.CASES)
def test_damage_is_found_and_what_is_left_reads_without_it(name, kind, sound, tmp_path):
    damage = damages.DAMAGES[name]
    directory = damages.hurt(name, kind, sound, tmp_path)
    source = formats.open_source(kind, directory)
    report = doctor.examine(source, THOROUGH)
    matching = [f for f in report.found if f.check == damage.check and damage.words in f.message]
    assert (damage.severity, damage.episode) in {(f.severity, f.episode) for f in matching}, report.found

    refused = read_all(source)  # damage is refused sample by sample, never by another exception
    listed = tmp_path / "quarantine.jsonl"
    assert doctor.quarantine_new(listed, report) == len(report.entries)
    healed = formats.open_source(kind, directory, listed)
    assert read_all(healed) == set()
    again = doctor.examine(healed, THOROUGH, quarantine.read(listed))
    assert again.counts["error"] == 0, again.found
    assert doctor.quarantine_new(listed, again) == 0
    assert healed.valid.any() or name in ("wrong fps",)
    if damage.severity == "error" and refused:
        named = {entry.episode for entry in report.entries}
        assert {episode for episode, _ in refused} <= named


def test_a_bad_action_spoils_every_chunk_that_holds_it(sound, tmp_path):
    directory = damages.hurt("NaN action", formats.RLDS, sound, tmp_path)
    report = doctor.examine(formats.open_source(formats.RLDS, directory), dataclasses.replace(THOROUGH, horizon=3))
    assert [(e.episode, e.frame) for e in report.entries] == [(2, 3), (2, 4), (2, 5)]


def test_the_examination_stops_above_the_budget(sound, tmp_path):
    directory = damages.hurt("wrong fps", formats.V21, sound, tmp_path)
    report = doctor.examine(formats.open_source(formats.V21, directory), doctor.Options(budget=0.1, workers=1))
    assert report.examined == 1
    assert "above the budget of 10.0%" in report.stopped and "raise the budget" in report.stopped


def test_skipping_pictures_touches_none(sound, monkeypatch):
    source = formats.open_source(formats.V3, sound[formats.V3])
    monkeypatch.setattr(source, "frames", lambda *_: pytest.fail("a picture was decoded"))
    report = doctor.examine(source, dataclasses.replace(THOROUGH, every=0))
    assert report.counts["error"] == 0


def test_progress_counts_frames_up_to_the_end(sound):
    seen = []
    source = formats.open_source(formats.RLDS, sound[formats.RLDS])
    doctor.examine(source, dataclasses.replace(THOROUGH, every=3), progress=lambda *at: seen.append(at))
    assert seen == [(7, 27), (12, 27), (21, 27), (27, 27)]


def test_the_report_is_json(sound, tmp_path):
    directory = damages.hurt("jump", formats.RLDS, sound, tmp_path)
    report = doctor.examine(formats.open_source(formats.RLDS, directory), THOROUGH)
    content = json.loads(json.dumps(report.to_json()))
    assert content["counts"]["warning"] >= 1 and content["found"][0]["check"] == "jump"


def test_drift_of_the_clock_is_a_warning():
    times = np.arange(300) / 10 * 1.0005
    assert [(f.severity, f.check) for f in checks.timestamps(times, 10.0, 0)] == [("warning", "rate")]
    assert list(checks.timestamps(np.arange(300, dtype=np.float32) / 10, 10.0, 0)) == []
    late = [f.message for f in checks.timestamps(np.arange(300) / 10 + 5, 10.0, 0)]
    assert late == ["starts at 5.0000 s, expected 0"]
