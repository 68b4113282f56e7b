import dataclasses
import json
import subprocess
import sys
import time

import formats
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from molmoact2_jax.data import fit_report, memory, norm_stats, stats

RNG = np.random.default_rng(5)
FACTS = norm_stats.Tag(horizon=10, n_action_steps=10, setup="a robot", control="absolute joint pose")
LEVELS = (0.01, 0.10, 0.50, 0.90, 0.99)


class Blind(memory.MemorySource):
    """A dataset whose pictures nobody may touch."""

    def frames(self, episode, frames, cameras):
        raise AssertionError("statistics read a picture")


def source(name="own", lengths=(40, 30), channels=3, names=("j0", "j1", "gripper"), state=None):
    episodes = []
    for length in lengths:
        state_rows = RNG.normal(size=(length, channels)).astype(np.float32) if state is None else state[:length]
        action = state_rows + 0.01 * RNG.normal(size=state_rows.shape).astype(np.float32)
        action[:, -1] = state_rows[:, -1] = RNG.uniform(0, 1, size=length)
        pictures = {"image": np.zeros((length, 4, 4, 3), np.uint8)}
        episodes.append(memory.Episode(state_rows, action, pictures, "pick up the cup"))
    made = Blind(name, episodes, fps=10.0)
    made.state_names = made.action_names = tuple(names)
    return made


def test_statistics_of_several_datasets_are_those_of_numpy_on_their_concatenation():
    sources = [source("a"), source("b", lengths=(7,))]
    tag = stats.measure_sources(sources, FACTS)
    for kind in ("state", "action"):
        union = np.concatenate([s.columns((kind,))[kind] for s in sources]).astype(np.float64)
        found = getattr(tag, kind)
        quantiles = np.quantile(union, LEVELS, axis=0)
        np.testing.assert_array_equal([getattr(found, q) for q in norm_stats.QUANTILES], quantiles)
        np.testing.assert_array_equal([found.min, found.max], [union.min(axis=0), union.max(axis=0)])
        np.testing.assert_allclose([found.mean, found.std], [union.mean(axis=0), union.std(axis=0)], rtol=1e-12)
        assert found.count == len(union) and found.mask == (True, True, False)


def test_the_largest_step_is_inside_an_episode_and_between_frames_that_count():
    rows = np.zeros((6, 3), np.float32)
    rows[:, 0], rows[:, 1] = [0, 1, 3, 100, 101, 101], [0, 0, -5, -5, -5, 0]
    episodes = [
        memory.Episode(part, part, {"image": np.zeros((3, 4, 4, 3), np.uint8)}, "") for part in (rows[:3], rows[3:])
    ]
    own, other = (Blind(name, episodes, fps=10.0) for name in ("own", "other"))
    for made in (own, other):
        made.state_names = made.action_names = ("j0", "j1", "gripper")
    assert stats.measure_sources([own], FACTS).action.max_step == (2, 5, 0)
    own.valid = np.array([True, True, False, True, True, True])
    tag = stats.measure_sources([own], FACTS)
    assert tag.action.max_step == (1, 5, 0) and tag.state.max_step is None
    assert stats.measure_sources([own, other], FACTS).action.max_step == (2, 5, 0)
    assert stats.merge([tag, stats.measure_sources([other], FACTS)]).action.max_step == (2, 5, 0)
    assert {dataset["fps"] for dataset in tag.provenance["datasets"]} == {10.0}


def test_quantiles_of_a_million_frames_of_fourteen_channels_are_those_of_numpy():
    rows = RNG.normal(size=(1_000_000, 14)).astype(np.float32)
    found = stats.exact([rows[:333_333], rows[333_333:]], [f"j{i}" for i in range(14)], [True] * 14)
    np.testing.assert_array_equal(found.q99, np.quantile(rows.astype(np.float64), 0.99, axis=0))


def numbers_only(root, state, action, episodes):
    """Writes a LeRobot v2.1 dataset without cameras."""
    names, length = [f"joint_{i}" for i in range(state.shape[1])], len(state) // episodes
    whole = {"dtype": "int64", "shape": [1], "names": None}
    vector = {"dtype": "float32", "shape": [len(names)], "names": names}
    features = {"observation.state": vector, "action": vector, "timestamp": whole | {"dtype": "float32"}}
    features |= {name: whole for name in ("frame_index", "episode_index", "index", "task_index")}
    info = {"codebase_version": "v2.1", "fps": 30, "chunks_size": 1000, "features": features,
            "data_path": "data/episode_{episode_index:06d}.parquet", "video_path": None}  # fmt: skip
    for name in ("data", "meta"):
        (root / name).mkdir(parents=True)
    for e in range(episodes):
        rows, frames = slice(e * length, (e + 1) * length), np.arange(length)
        table = {name: pa.FixedSizeListArray.from_arrays(pa.array(values[rows].ravel()), len(names))
                 for name, values in (("observation.state", state), ("action", action))}  # fmt: skip
        table |= {"timestamp": (frames / 30).astype(np.float32), "frame_index": frames, "index": frames + rows.start}
        table |= {"episode_index": frames * 0 + e, "task_index": frames * 0}
        pq.write_table(pa.table(table), root / f"data/episode_{e:06}.parquet")
    (root / "meta" / "info.json").write_text(json.dumps(info))
    lines = ({"episode_index": e, "tasks": ["go"], "length": length} for e in range(episodes))
    (root / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "go"}) + "\n")
    return root


@pytest.mark.slow
def test_the_command_measures_a_million_frames_in_files_in_less_than_thirty_seconds(tmp_path):
    state, action = RNG.normal(size=(2, 1_000_000, 14)).astype(np.float32)
    directory = numbers_only(tmp_path / "arm", state, action, episodes=20)
    start = time.perf_counter()
    command = [sys.executable, "-m", "molmoact2_jax.cli.main", "data", "stats", directory]
    subprocess.run([*command, "--tag", "arm", "--out", tmp_path / "n.json"], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    tag = norm_stats.load(tmp_path / "n.json").tag("arm")
    for found, values in ((tag.state, state), (tag.action, action)):
        expected = np.quantile(values.astype(np.float64), LEVELS, axis=0)
        np.testing.assert_array_equal([getattr(found, q) for q in norm_stats.QUANTILES], expected)
        assert found.count == 1_000_000
    assert seconds < 30


def test_quarantined_frames_do_not_count():
    made = source()
    made.columns(("action",))["action"][3] = np.nan
    with pytest.raises(ValueError, match=r"channel 0 \(j0\) is not finite in 1 of 70 frames"):
        stats.measure_sources([made], FACTS)
    made.valid[3] = False
    tag = stats.measure_sources([made], FACTS)
    assert tag.action.count == 69 and tag.provenance["datasets"][0]["excluded_frames"] == 1


def test_the_file_keeps_provenance_and_its_digest_notices_a_change(tmp_path):
    tag = stats.measure_sources([source()], FACTS)
    norm_stats.save(tmp_path / "norm_stats.json", norm_stats.NormStats("q01_q99", {"own": tag}))
    read = norm_stats.load(tmp_path / "norm_stats.json").tag("own")
    assert read.provenance["quantiles"] == "exact" and read.provenance["datasets"][0]["frames"] == 70
    assert stats.intact(read) is True
    content = json.loads((tmp_path / "norm_stats.json").read_text())
    content["metadata_by_tag"]["own"]["action_stats"]["q99"][0] += 0.5
    assert stats.intact(norm_stats.from_json(content).tags["own"]) is False
    assert stats.intact(dataclasses.replace(read, provenance=None)) is None


def test_merging_files_is_exact_but_for_quantiles_and_says_so():
    parts = [source("a"), source("b", lengths=(7,))]
    tags = [stats.measure_sources([part], FACTS) for part in parts]
    merged, exact = stats.merge(tags), stats.measure_sources(parts, FACTS)
    for field in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(merged.action, field), getattr(exact.action, field), rtol=1e-9)
    weighted = np.average([t.action.q01 for t in tags], axis=0, weights=[70, 7])
    np.testing.assert_allclose(merged.action.q01, weighted)
    assert merged.provenance["quantiles"] == stats.AVERAGED
    assert [d["name"] for d in merged.provenance["datasets"]] == ["a", "b"]


def test_datasets_of_different_channels_are_refused_by_name():
    with pytest.raises(ValueError, match=r"action channels differ between datasets: a: .*; b: "):
        stats.measure_sources([source("a"), source("b", names=("j1", "j0", "gripper"))], FACTS)


def fitted(numbers, **changes):
    tag = stats.measure([numbers], FACTS)
    return fit_report.fit(dataclasses.replace(numbers, **changes), tag, "q01_q99")


def kinds(report, check):
    return [f.message for f in report.findings if f.check == check]


def test_a_dataset_fits_its_own_statistics():
    report = fitted(stats.read(source(lengths=(500, 500))))
    assert not report.findings
    assert all(abs(channel.outside - 0.02) < 0.005 and not channel.suspect for channel in report.channels)


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (np.degrees, "degrees, where the tag has radians"),
        (np.radians, "radians, where the tag has degrees"),
        (lambda x: x * 1000, "millimetres, where the tag has metres"),
    ],
)
def test_units_that_differ_are_named(convert, words):
    numbers = stats.read(source(lengths=(500,)))
    state = numbers.state.copy()
    state[:, :2] = convert(state[:, :2])
    report = fitted(numbers, state=state)
    assert [c.suspect for c in report.channels if c.kind == "state"] == [words, words, ""]
    (message,) = kinds(report, "units")
    assert words in message and "0 (j0), 1 (j1)" in message


def test_a_joint_that_turns_the_other_way_from_another_zero_is_named():
    numbers = stats.read(source(lengths=(400,), state=RNG.uniform(30, 80, size=(400, 3)).astype(np.float32)))
    state = numbers.state.copy()
    state[:, 0], state[:, 1] = -state[:, 0], state[:, 1] - 90
    suspects = [c.suspect for c in fitted(numbers, state=state).channels if c.kind == "state"]
    assert suspects == ["of the opposite sign", "shifted by -90 degrees", ""]


def test_values_that_no_conversion_explains_are_counted():
    numbers = stats.read(source(lengths=(400,)))
    action = numbers.action.copy()
    action[:100, 1] = 7.0
    messages = kinds(fitted(numbers, action=action), "outside")
    assert len(messages) == 1 and "action channel 1 (j1): 27" in messages[0]


def test_a_channel_that_uses_a_small_part_of_the_interval_is_named():
    numbers = stats.read(source(lengths=(400,)))
    action = numbers.action.copy()
    action[:, 0] = 0.9 + 0.004 * action[:, 0]
    (message,) = kinds(fitted(numbers, action=action), "narrow")
    assert "action channel 0 (j0) moves over 0.4% of" in message


def test_a_dead_scale_and_a_constant_channel_are_named():
    state = RNG.normal(size=(400, 3)).astype(np.float32)
    state[:, 0] = 0
    state[7, 0] = 5
    state[:, 1] = 2
    numbers = stats.read(source(lengths=(400,), state=state))
    tag = stats.measure([numbers], FACTS)
    moving = dataclasses.replace(numbers, state=RNG.normal(size=(400, 3)).astype(np.float32))
    report = fit_report.fit(moving, tag, "q01_q99")
    assert any("state channel 0 (j0): q99 - q01 = 0 but it moves" in m for m in kinds(report, "dead scale"))
    assert any("state channel 1 (j1) moves, but the tag has it constant" in m for m in kinds(report, "constant"))


def test_a_gripper_outside_the_range_that_passes_through_and_a_mirrored_one_are_named():
    numbers = stats.read(source(lengths=(400,)))
    action = numbers.action.copy()
    action[:, 2] = (RNG.uniform(size=400) < 0.1).astype(np.float32)
    tag = stats.measure([dataclasses.replace(numbers, action=action)], FACTS)
    mirrored, percent = action.copy(), action.copy()
    mirrored[:, 2] = 1 - mirrored[:, 2]
    percent[:, 2] *= 100
    report = fit_report.fit(dataclasses.replace(numbers, action=mirrored), tag, "q01_q99")
    assert any("perhaps open and closed are exchanged" in m for m in kinds(report, "gripper"))
    report = fit_report.fit(dataclasses.replace(numbers, action=percent), tag, "q01_q99")
    assert any("passes through raw and is 0 to 100" in m for m in kinds(report, "gripper"))


def test_rate_cameras_width_and_convention_are_compared():
    numbers = stats.read(source(lengths=(400,)))
    tag = stats.measure([numbers], dataclasses.replace(FACTS, cameras=("a", "b")))
    wrong = dataclasses.replace(numbers, fps=30.0, action=RNG.normal(size=(400, 3)).astype(np.float32))
    checks = {f.check for f in fit_report.fit(wrong, tag, "q01_q99").findings}
    assert {"rate", "cameras", "convention"} <= checks
    narrow = dataclasses.replace(numbers, state=numbers.state[:, :2], state_names=("j0", "j1"))
    assert "state has 2 channels" in kinds(fit_report.fit(narrow, tag, "q01_q99"), "width")[0]


def test_the_file_of_a_lerobot_dataset_gives_the_statistics_of_its_columns(tmp_path):
    directory = formats.write(formats.V3, tmp_path / "data", formats.smooth())
    facts = dataclasses.replace(FACTS, action_key="action", state_keys=("observation.state",))
    stored = stats.of_lerobot(directory, facts)
    exact = stats.measure_sources([formats.open_source(formats.V3, directory)], facts)
    assert stored.action.names == exact.action.names and stored.action.mask == exact.action.mask
    np.testing.assert_allclose(stored.state.q01, exact.state.q01, rtol=1e-6)
    assert stored.provenance["quantiles"] == stats.STORED
    twice = stats.merge([stored, stored])
    assert twice.action.count == 54 and twice.provenance["quantiles"] == stats.AVERAGED
    (directory / "meta" / "stats.json").unlink()
    with pytest.raises(ValueError, match=r"stats\.json: missing"):
        stats.of_lerobot(directory, facts)
