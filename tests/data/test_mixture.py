"""Weights of the mixture, the stream of draws and the choice between two streams."""

import itertools
import math
import pathlib
import runpy

import numpy as np
import pytest

from molmoact2_jax.data import mixture, vlm_registry

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ROBOTS = {
    "yam_dual_molmoact2": 0.30,
    "so100_so101_molmoact2": 0.30,
    "franka_droid": 0.30,
    "franka_molmoact": 0.025,
    "google_robot_bc_z": 0.025,
    "google_robot_fractal": 0.025,
    "widowx_bridge": 0.025,
}  # the paper, section 4.1.2: "YAM, SO-100/101, and DROID each receive 30%", "the remaining 10% is split"
TABLE_1 = {"image_qa": 0.115, "video_qa": 0.092, "image_pointing": 0.046, "video_pointing": 0.069,
           "video_tracking": 0.069, "captions": 0.069, "er_image_qa": 0.11, "er_pointing": 0.11, "er_detection": 0.01,
           "er_video_qa": 0.10, "er_multi_image": 0.09, "er_abstract": 0.04, "nlp": 0.08}  # fmt: skip


@pytest.mark.parametrize("name", ["pretrain", "posttrain", "posttrain_think"])
def test_the_recipes_have_the_paper_s_weights(name):
    data = runpy.run_path(CONFIGS / f"{name}.py")["get_config"]().data
    assert dict(data.tag_rates) == ROBOTS and {robot["tag"] for robot in data.robots} == set(ROBOTS)
    families = vlm_registry.MIXTURES[data.vlm_mixture]
    rates = mixture.blended(data.tag_rates, families, [*ROBOTS, *families], data.vlm_rate)
    expected = {k: 0.9 * v for k, v in ROBOTS.items()} | {k: 0.1 * v for k, v in TABLE_1.items()}
    assert rates == pytest.approx(expected)


def test_inside_a_tag_datasets_share_by_the_root_of_their_sizes():
    shares = [
        mixture.Share("a", "yam", 100),
        mixture.Share("b", "yam", 400),
        mixture.Share("c", "droid", 7),
    ]
    np.testing.assert_allclose(mixture.weights(shares, {"yam": 0.6, "droid": 0.3}), [2 / 9, 4 / 9, 1 / 3])


def test_a_group_without_data_leaves_its_part_to_the_others_and_says_so(caplog):
    found = mixture.weights([mixture.Share("a", "yam", 9)], ROBOTS | {"yam": 0.1})
    np.testing.assert_allclose(found, [1.0])
    assert "franka_droid" in caplog.text


@pytest.mark.parametrize(("factor", "expected"), [(None, 20.0), (0, 1.0), (0.25, 10.0), (1, 1.0), (10_000, 100.0)])
def test_size_factors_are_the_released_ones(factor, expected):
    assert math.isclose(mixture.root_size(400, factor), expected)


def test_pre_training_gives_robots_nine_tenths():
    vlm = {"qa": 3.0, "nlp": 1.0}
    rates = mixture.blended(ROBOTS, vlm, [*ROBOTS, *vlm])
    assert math.isclose(sum(rates.values()), 1)
    assert math.isclose(rates["franka_droid"], 0.27) and math.isclose(rates["qa"], 0.075)


def test_robots_keep_nine_tenths_whichever_groups_are_absent(caplog):
    shares = [mixture.Share("arm", "franka_droid", 10), mixture.Share("cups", "qa", 1000)]
    rates = mixture.blended(ROBOTS, {"qa": 1.0, "nlp": 9.0}, {share.group for share in shares})
    np.testing.assert_allclose(mixture.weights(shares, rates), [0.9, 0.1])
    assert "no dataset of group nlp" in caplog.text and "yam_dual_molmoact2" in caplog.text
    strangers = [mixture.Share("arm", "own", 10), mixture.Share("cups", "qa", 5)]
    with pytest.raises(ValueError, match="arm is of group 'own'"):
        mixture.weights(strangers, mixture.blended({"other": 1.0}, {"qa": 1.0}, {"own", "qa"}))


@pytest.mark.parametrize(
    ("share", "words"),
    [(mixture.Share("a", "none", 3), "Give the group a rate"), (mixture.Share("a", "yam", 0), "at least one")],
)
def test_a_share_that_cannot_be_drawn_is_refused(share, words):
    with pytest.raises(ValueError, match=words):
        mixture.weights([share], {"yam": 1.0})


def test_the_step_schedule_is_the_released_formula():
    taken = [mixture.stream_at(step) for step in range(4000)]
    rng = np.random.RandomState(6198 + 17 * 1_000_003)
    assert (taken[17] == "vlm") == (rng.random_sample() < 0.1)
    assert 0.08 < taken.count("vlm") / len(taken) < 0.12
    assert {mixture.stream_at(s, 0.0) for s in range(50)} == {"robot"}
    assert {mixture.stream_at(s, 1.0) for s in range(50)} == {"vlm"}


SIZES, PROBABILITIES = (5, 40, 13), np.array([0.5, 0.2, 0.3])


def drawn(count, seed=3, start=0):
    draws = mixture.Draws(SIZES, PROBABILITIES, seed)
    draws.seek(start)
    return list(itertools.islice(iter(draws.__next__, None), count))


def test_every_example_comes_once_per_epoch():
    stream = drawn(600)
    for dataset, size in enumerate(SIZES):
        own = [(epoch, index) for d, index, epoch in stream if d == dataset]
        for epoch in range(len(own) // size):
            part = own[epoch * size : (epoch + 1) * size]
            assert sorted(part) == [(epoch, i) for i in range(size)]
            assert size < 10 or part != sorted(part)


def test_the_stream_goes_on_from_any_position(monkeypatch):
    monkeypatch.setattr(mixture.Draws, "BLOCK", 64)
    stream = drawn(300)
    for start in (0, 1, 63, 64, 65, 250):
        assert drawn(50, start=start) == stream[start : start + 50]


def test_datasets_are_drawn_by_their_weights_and_epochs_are_shuffled_anew():
    stream = drawn(20_000)
    share = np.bincount([d for d, _, _ in stream], minlength=3) / len(stream)
    np.testing.assert_allclose(share, PROBABILITIES, atol=0.02)
    first, second = ([i for d, i, e in stream if d == 1 and e == epoch] for epoch in (0, 1))
    assert first != second
    assert drawn(100, seed=4) != stream[:100]


def test_the_stream_is_that_of_the_legacy_generator():
    rng = np.random.RandomState(3)
    expected = [rng.choice(3, p=PROBABILITIES) for _ in range(100)]
    assert [d for d, _, _ in drawn(100)] == expected


def test_an_example_draws_anew_in_each_epoch_and_alike_in_the_same():
    a, b, c = (mixture.example_rng(mixture.DATA_SEED, 5, 100, epoch).random_sample() for epoch in (0, 0, 1))
    assert a == b != c
