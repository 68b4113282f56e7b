import dataclasses
import json

import numpy as np
import pytest

from molmoact2_jax.data import norm_stats

ARM = norm_stats.TagStats(
    mean=(0.0, 1.0), std=(1.0, 2.0), min=(-3.0, -5.0), max=(3.0, 7.0), q01=(-2.0, -3.0), q99=(2.0, 5.0),
    mask=(True, False), names=("joint", "Gripper"), count=10,
)  # fmt: skip
TAG = norm_stats.Tag(
    action=ARM, state=ARM, horizon=30, n_action_steps=25, cameras=("top", "left"), setup="one arm", control="joints",
    state_keys=("observation.state",), normalize_gripper=False, joint_signs=(1.0, -1.0), joint_offsets=(0.0, 90.0),
    provenance={"quantiles": "exact"},
)  # fmt: skip


@pytest.fixture(params=["tiny", "tiny_think", "tiny_think_random"])
def released(request, golden):
    return golden / request.param / "norm_stats.json"


def test_saving_what_was_loaded_changes_nothing(released, tmp_path):
    norm_stats.save(tmp_path / "copy.json", norm_stats.load(released))
    assert json.loads((tmp_path / "copy.json").read_text()) == json.loads(released.read_text())


def test_released_tags_are_read(released):
    stats = norm_stats.load(released)
    assert stats.mode == "q01_q99"
    libero, yam = stats.tag("libero"), stats.tag("yam")
    assert (libero.action.width, libero.state.width, libero.horizon, libero.n_action_steps) == (7, 8, 10, 10)
    assert (yam.action.width, yam.horizon, yam.n_action_steps) == (14, 30, 25)
    assert yam.cameras == ("top", "left", "right")
    assert libero.setup == "single franka robotic arm in libero" and libero.control == "delta end-effector pose"
    assert libero.action.mask == (True,) * 6 + (False,)


def test_a_new_file_reads_back_equal(tmp_path):
    stats = norm_stats.NormStats("q01_q99", {"arm": TAG})
    norm_stats.save(tmp_path / "norm_stats.json", stats)
    again = norm_stats.load(tmp_path / "norm_stats.json")
    assert again == stats and again.tag("arm") == TAG
    assert json.loads((tmp_path / "norm_stats.json").read_text())["format"] == norm_stats.FORMAT


def test_unknown_fields_survive_and_known_ones_can_change():
    source = {
        "format": "v1",
        "date": "2026",
        "norm_mode": "min_max",
        "metadata_by_tag": {
            "arm": {
                "repo": "x",
                "camera_keys": [],
                "camera_keys_alternative": ["a"],
                "action_horizon": 3,
                "action_stats": {"min": [0.0], "max": [1.0], "kurtosis": [3.0], "count": [4]},
            }
        },
    }
    stats = norm_stats.from_json(source)
    assert norm_stats.to_json(stats) == source
    action = dataclasses.replace(stats.tags["arm"].action, max=(2.0,), count=None)
    tag = dataclasses.replace(stats.tags["arm"], action=action, alternative_cameras=(), horizon=5)
    written = norm_stats.to_json(dataclasses.replace(stats, tags={"arm": tag}))["metadata_by_tag"]["arm"]
    assert written == {
        "repo": "x",
        "camera_keys": [],
        "camera_keys_alternative": [],
        "action_horizon": 5,
        "action_stats": {"min": [0.0], "max": [2.0], "kurtosis": [3.0]},
    }


def test_older_files_name_one_state_column():
    tag = norm_stats.from_json({"metadata_by_tag": {"arm": {"state_key": "observation.state"}}}).tags["arm"]
    assert tag.state_keys == ("observation.state",)


def test_a_missing_mode_means_the_released_default():
    assert norm_stats.from_json({"metadata_by_tag": {}}).mode == "min_max"


def test_unknown_tag_lists_those_there_are():
    with pytest.raises(ValueError, match=r"norm_tag: 'panda', expected one of \['arm'\]"):
        norm_stats.NormStats(tags={"arm": TAG}).tag("panda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q99": (1.0,)}, r"action_stats\.q99: 1 entries, expected 2"),
        ({"q01": (0.0, float("nan"))}, r"action_stats\.q01: not finite in channels \['1 \(Gripper\)'\]"),
        ({"q99": None}, r"action_stats\.q99: missing, required by norm_mode 'q01_q99'"),
        ({"mask": (True,)}, r"action_stats\.mask: 1 entries"),
    ],
)
def test_statistics_that_contradict_themselves_are_refused_by_field(change, message):
    tag = dataclasses.replace(TAG, action=dataclasses.replace(ARM, **change))
    with pytest.raises(ValueError, match=message):
        norm_stats.NormStats(tags={"arm": tag}).tag("arm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "action_horizon: 0"),
        ({"n_action_steps": 31}, "n_action_steps: 31, expected 1 to 30"),
        ({"n_action_steps": 0}, "n_action_steps: 0"),
        ({"joint_offsets": None}, "2 joint_signs and None joint_offsets"),
    ],
)
def test_tags_that_contradict_themselves_are_refused_by_field(change, message):
    with pytest.raises(ValueError, match=message):
        norm_stats.NormStats(tags={"arm": dataclasses.replace(TAG, **change)}).tag("arm")


def test_one_bad_robot_does_not_hide_the_others():
    bad = dataclasses.replace(TAG, horizon=0)
    assert norm_stats.NormStats(tags={"bad": bad, "arm": TAG}).tag("arm") == TAG


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"norm_mode": "l2", "metadata_by_tag": {}}'])
def test_files_of_another_format_are_refused_by_name(text, tmp_path):
    path = tmp_path / "norm_stats.json"
    with pytest.raises(FileNotFoundError, match="norm_stats"):
        norm_stats.load(path)
    path.write_text(text)
    with pytest.raises(ValueError, match="norm_stats: cannot read"):
        norm_stats.load(path)


def test_merged_moments_are_those_of_all_frames():
    rng = np.random.default_rng(0)
    parts = [rng.normal(i, 1 + i, (40 * (i + 1), 3)) for i in range(3)]

    def stats(x):
        moments = dict(mean=x.mean(0), std=x.std(0), min=x.min(0), max=x.max(0), q50=np.median(x, axis=0))
        return norm_stats.TagStats(**{k: tuple(v.tolist()) for k, v in moments.items()}, count=len(x))

    merged, whole = norm_stats.merge([stats(p) for p in parts]), stats(np.concatenate(parts))
    assert merged.count == 240
    for field in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(merged, field), getattr(whole, field), rtol=1e-12)
    expected = sum(np.median(p, axis=0) * len(p) for p in parts) / 240
    np.testing.assert_allclose(merged.q50, expected, rtol=1e-12)
    assert merged.q01 is None


def test_merging_one_set_changes_nothing():
    merged = norm_stats.merge([ARM])
    for field in ("mean", "std", "min", "max", "q01", "q99"):
        np.testing.assert_allclose(getattr(merged, field), getattr(ARM, field), rtol=1e-15)
    assert (merged.mask, merged.names, merged.count) == (ARM.mask, ARM.names, ARM.count)


def test_merging_refuses_other_layouts_and_unknown_counts():
    with pytest.raises(ValueError, match="channels differ"):
        norm_stats.merge([ARM, dataclasses.replace(ARM, names=("joint", "hand"))])
    with pytest.raises(ValueError, match="count of frames"):
        norm_stats.merge([ARM, dataclasses.replace(ARM, count=None)])
    with pytest.raises(ValueError, match="at least one"):
        norm_stats.merge([])


def test_grippers_are_found_by_name():
    names = ("left_joint", "left_GRIPPER.pos", "right")
    assert norm_stats.gripper_mask(names, 3, normalize_gripper=False) == (True, False, True)
    assert norm_stats.gripper_mask(None, 3, normalize_gripper=True) == (True, True, True)
    for unusable in (None, ("a",)):
        with pytest.raises(ValueError, match="to find the gripper"):
            norm_stats.gripper_mask(unusable, 3, normalize_gripper=False)


def test_digest_follows_the_numbers_and_not_their_history():
    same = dataclasses.replace(TAG, provenance={"quantiles": "merged"}, source={"note": "x"})
    other = dataclasses.replace(TAG, action=dataclasses.replace(ARM, q99=(2.0, 5.5)))
    assert norm_stats.digest(same) == norm_stats.digest(TAG) != norm_stats.digest(other)


def test_single_numbers_stand_for_one_channel():
    stats = norm_stats.stats_from_json({"mean": 1, "count": 7, "names": "x"})
    assert (stats.mean, stats.count, stats.names, stats.width) == ((1.0,), 7, ("x",), 1)
    assert norm_stats.TagStats().width == 0
