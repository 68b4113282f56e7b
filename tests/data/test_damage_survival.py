"""The loader goes on over damaged data of every format and names what it left out."""

import collections
import itertools

import checkpoints
import damages
import formats
import numpy as np
import pytest

from molmoact2_jax.data import doctor, loader, norm_stats, pack, quarantine, robot, stats
from molmoact2_jax.data.robot_options import Options, Robot
from molmoact2_jax.data.stream import RowShape, Stream

FACTS = norm_stats.Tag(horizon=10, setup="an arm", control="absolute joint pose", normalize_gripper=True)
ERRORS = [(name, kind) for name, kind in damages.CASES if damages.DAMAGES[name].severity == "error"]
READABLE = (
    "absent language",
    "blank task",
    "wrong fps",
    "duplicate index",
    "extreme value",
)  # only the doctor sees them
BATCHES = 14  # of about two examples: all 27 frames come at least once


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return formats.sound_copies(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def encoding(golden):
    return checkpoints.load(golden / "tiny").encoding


@pytest.fixture(scope="module")
def tag(sound):
    return stats.measure_sources([formats.open_source(formats.RLDS, sound[formats.RLDS])], FACTS)


def loaded(source, tag, encoding, **options):
    """Makes a loader of one robot dataset, in this process."""
    dataset = robot.RobotDataset(source, Robot("own", tag, "q01_q99"), encoding, Options(action_format="continuous"))
    processor = encoding.processor
    side = -(-(processor.image_size // processor.patch_size) // processor.pooling)
    shape = RowShape(
        pack.Limits(tokens=600, crops=4, chunks=2),
        crop_size=processor.image_size,
        patches=encoding.patches,
        windows=4 * side**2,
        window=processor.pooling**2,
        horizon=30,
        channels=32,
        pad=encoding.ids.pad,
    )
    stream = Stream([dataset], np.ones(1), shape, buffer=4)
    return loader.Loader({"robot": stream}, loader.Options(global_batch=2, **options))


@pytest.mark.parametrize(("name", "kind"), ERRORS)
def test_the_loader_goes_on_and_names_the_damage(name, kind, sound, tag, encoding, tmp_path):
    directory = damages.hurt(name, kind, sound, tmp_path)
    source = formats.open_source(kind, directory)
    running = loaded(source, tag, encoding, max_damage=1.0)
    batches = [next(running) for _ in range(BATCHES)]
    assert all(np.isfinite(batch.actions).all() for batch in batches)
    assert sum(int((batch.chunk_example >= 0).sum()) for batch in batches) > BATCHES

    episode = damages.DAMAGES[name].episode
    named = {number for _, number, _ in running.report.quarantined}
    assert episode in named or name in READABLE
    assert all(reason for reason in running.report.quarantined.values())
    assert len(running.report.quarantined) <= running.report.damaged.total()
    assert name not in ("absent language", "blank task") or running.report.noted["no instruction"]

    listed = tmp_path / "quarantine.jsonl"
    report = doctor.examine(source, doctor.Options(budget=1.0))
    doctor.quarantine_new(listed, report)
    healed = formats.open_source(kind, directory, listed)
    if not healed.valid.any():
        return
    running = loaded(healed, tag, encoding, max_damage=0.0, grace=0)  # not one damaged sample is tolerated any more
    for _ in range(BATCHES):
        next(running)
    assert not running.report.damaged
    assert bool(running.report.skipped["quarantined"]) == (not healed.valid.all())


def test_episodes_that_cannot_be_opened_count_before_the_first_batch(sound, tag, encoding, tmp_path, caplog):
    directory = damages.hurt("missing shard", formats.RLDS, sound, tmp_path)
    source = formats.open_source(formats.RLDS, directory)
    with pytest.raises(loader.DamageError, match=r"1 of 4 episodes cannot be read, .*own, episode 0: .*--quarantine"):
        loaded(source, tag, encoding)
    assert "quarantined: own, episode 0" in caplog.text
    running = loaded(source, tag, encoding, max_damage=0.25)
    next(running)
    assert set(running.report.quarantined) == {("own", 0, None)} and running.report.damaged == {"opening": 1}
    listed = tmp_path / "quarantine.jsonl"
    doctor.quarantine_new(listed, doctor.examine(source, doctor.Options(budget=1.0)))
    known = formats.open_source(formats.RLDS, directory, listed)
    assert not known.problems
    next(loaded(known, tag, encoding, max_damage=0.0, grace=0))


def test_the_loader_stops_over_its_budget_and_names_the_doctor(sound, tag, encoding, tmp_path):
    directory = damages.hurt("missing camera", formats.V21, sound, tmp_path)
    running = loaded(formats.open_source(formats.V21, directory), tag, encoding, max_damage=0.01, grace=2)
    with pytest.raises(loader.DamageError, match=r"3 damaged samples, .*molmoact2 data check"):
        collections.deque(itertools.islice(running, 40), maxlen=0)


def test_a_quarantine_file_that_loaders_wrote_is_honoured_too(sound, tmp_path):
    listed = tmp_path / "quarantine.jsonl"
    quarantine.append(listed, [quarantine.Entry("own", 1, 3, "seen by a loader"), quarantine.Entry("own", 2, None, "")])
    source = formats.open_source(formats.RLDS, sound[formats.RLDS], listed)
    expected = np.ones(27, bool)
    expected[7 + 3], expected[12:21] = False, False
    np.testing.assert_array_equal(source.valid, expected)
