"""What a robot or a directory must not be, and what the refusal says. Nothing here compiles a program."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest

from molmoact2_jax import DepthCache, Observation, Policy
from molmoact2_jax.serve import observe

PICTURE = np.zeros((40, 60, 3), np.uint8)
STATE = np.zeros(8, np.float32)


@pytest.fixture(scope="module")
def thinker(golden):
    return Policy.from_pretrained(golden / "tiny_think_random", dtype="float32", unroll=False)


def refused(policy, message, *, images=(PICTURE, PICTURE), task="pick", state=STATE, norm_tag="libero", **options):
    with pytest.raises(ValueError, match=message):
        policy.predict_action(images, task, state, norm_tag, **options)
    assert policy.compilations == 0


def test_an_unknown_robot_lists_those_there_are(policy):
    refused(policy, r"norm_tag: 'droid', expected one of \['libero', 'yam'\]", norm_tag="droid")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((), r"images: none, expected 2 \(image, wrist_image\)"),
        ((PICTURE,) * 3, r"images: 3, expected 2 \(image, wrist_image\)"),
        ((PICTURE, PICTURE[..., 0, 0]), r"images\[1\]: .*expected"),
        ((PICTURE[:0], PICTURE), r"images\[0\]: .*expected"),
        ((PICTURE[None, None, :2, :2].repeat(2, axis=0), PICTURE), r"images\[0\]: .*expected"),
        ((PICTURE.astype(np.int32) + 300, PICTURE), r"images\[0\]: .*expected"),
        ((PICTURE.astype(np.float32) - 0.5, PICTURE), r"images\[0\]: .*expected"),
        ((np.full((4, 4, 3), np.nan, np.float32), PICTURE), r"images\[0\]: .*expected"),
        (("picture.png", PICTURE), r"images\[0\]: .*expected"),
    ],
)
def test_pictures_of_the_wrong_number_rank_or_range_are_refused(policy, images, message):
    refused(policy, message, images=images)


def test_more_than_five_pictures_are_refused_where_no_cameras_are_listed(policy):
    host = policy.host
    tags = {**host.stats.tags, "libero": dataclasses.replace(host.stats.tags["libero"], cameras=())}
    free = Policy(
        dataclasses.replace(host, stats=dataclasses.replace(host.stats, tags=tags)), policy.params, unroll=False
    )
    refused(free, "images: 6, expected 1 to 5", images=[PICTURE] * 6)


def test_fewer_pictures_are_accepted_once_logged_or_refused_on_request(policy, caplog):
    tag = policy.host.tag("libero")
    assert len(observe.pictures(Observation([PICTURE], "", STATE, "libero"), tag, strict_cameras=False)) == 1
    refused(
        policy,
        r"images: 1, expected 2 \(image, wrist_image\).*strict_cameras=False",
        images=[PICTURE],
        strict_cameras=True,
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            refused(policy, "state: None", images=[PICTURE], state=None)
    assert [record.message for record in caplog.records].count(
        "images: 1, tag 'libero' lists image, wrist_image; the prompt shows those given"
    ) == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "state: None, expected 8 numbers"),
        (np.zeros(7, np.float32), r"state: float32\[7\], expected float32\[8\]"),
        (np.zeros((1, 8), np.float32), r"state: float32\[1, 8\], expected float32\[8\]"),
        (["a"] * 8, r"state: .*expected float32\[8\]"),
        (np.where(np.arange(8) == 2, np.nan, 0), r"state: not finite in channels \['2 \(j2\)'\]"),
        (np.where(np.arange(8) > 5, -np.inf, 0), r"state: not finite in channels \['6 \(j6\)', '7 \(j7\)'\]"),
    ],
)
def test_states_of_the_wrong_length_or_not_finite_are_refused_by_channel(policy, state, message):
    refused(policy, message, state=state)


@pytest.mark.parametrize("task", [None, 3, b"pick", ["pick"]])
def test_a_task_that_is_no_string_is_refused(policy, task):
    refused(policy, "task: .*expected", task=task)


def test_a_robot_with_more_channels_than_the_model_is_refused(policy):
    host, tag = policy.host, policy.host.stats.tags["libero"]
    wide = dataclasses.replace(tag.action, **{
        name: values * 5 for name in ("mean", "std", "min", "max", "q01", "q10", "q90", "q99", "mask", "names")
        if (values := getattr(tag.action, name)) is not None
    })  # fmt: skip
    tags = {**host.stats.tags, "libero": dataclasses.replace(tag, action=wide)}
    other = Policy(
        dataclasses.replace(host, stats=dataclasses.replace(host.stats, tags=tags)), policy.params, unroll=False
    )
    refused(other, "norm_tag: 'libero' has 35 action channels, expected at most 32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="both"), r"mode: 'both', expected one of \('continuous', 'discrete'\)"),
        (dict(depth="on"), r"depth: 'on', expected one of"),
        (dict(depth="adaptive"), "depth: 'adaptive', but the checkpoint does not reason about depth"),
        (dict(depth="full"), "depth: 'full', but the checkpoint does not reason about depth"),
        (dict(num_steps=0), "num_steps: 0, expected at least 1"),
        (dict(n_action_steps=11), "n_action_steps: 11, expected 1 to 10"),
        (dict(n_action_steps=0), "n_action_steps: 0, expected 1 to 10"),
        (dict(nois=None), r"unknown options \['nois'\]"),
        (dict(noise=np.zeros((10, 7))), r"noise: .*expected finite float32\[10, 32\]"),
        (dict(noise=np.full((10, 32), np.inf)), r"noise: .*expected finite float32\[10, 32\]"),
    ],
)
def test_options_that_the_checkpoint_cannot_serve_are_refused_by_name(policy, options, message):
    refused(policy, message, **options)


def test_discrete_actions_need_action_tokens_and_their_codec(policy):
    host = policy.host
    tokens = dataclasses.replace(host.cfg.tokens, num_actions=0, action_first=None)
    without = dataclasses.replace(host, cfg=dataclasses.replace(host.cfg, tokens=tokens))
    refused(
        Policy(without, policy.params, unroll=False),
        "mode: 'discrete', but the checkpoint has no action tokens",
        mode="discrete",
    )
    bare = Policy(dataclasses.replace(host, codec=None), policy.params, unroll=False)
    refused(bare, "no action_tokenizer directory", mode="discrete")


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (DepthCache(PICTURE, np.zeros(99, np.int32)), r"depth_cache\.codes: int32\[99\], expected int32\[100\]"),
        (DepthCache(PICTURE, np.zeros(100, np.float32)), r"depth_cache\.codes: float32\[100\], expected int32\[100\]"),
        (
            DepthCache(PICTURE, np.zeros((10, 10), np.int32)),
            r"depth_cache\.codes: int32\[10, 10\], expected int32\[100\]",
        ),
        (DepthCache(PICTURE, np.full(100, -1)), r"depth_cache\.codes: from -1 to -1, expected 0 to 127"),
        ({"image": PICTURE, "depth_bins": np.zeros(100, np.int32)}, r"depth_cache: dict, expected a DepthCache"),
        (DepthCache(PICTURE, np.full(100, 128)), r"depth_cache\.codes: from 128 to 128, expected 0 to 127"),
        (DepthCache(None, np.zeros(100, np.int32)), r"depth_cache\.image: None"),
        (DepthCache(PICTURE[:0], np.zeros(100, np.int32)), r"depth_cache\.image: .*expected"),
    ],
)
def test_a_depth_cache_that_does_not_fit_is_refused_by_field(thinker, cache, message):
    refused(thinker, message, depth="adaptive", depth_cache=cache)


def test_a_depth_cache_without_depth_is_refused(thinker):
    cache = DepthCache(PICTURE, np.zeros(100, np.int32))
    refused(thinker, r"depth_cache: given with depth='off'", depth_cache=cache)


@pytest.mark.parametrize("name", ["depth_caches", "noise"])
def test_a_batch_needs_an_entry_for_each_observation(thinker, name):
    observations = [Observation((PICTURE, PICTURE), "pick", STATE, "libero")] * 2
    with pytest.raises(ValueError, match=f"{name}: 1, expected 2"):
        thinker.predict_actions(observations, depth="adaptive", **{name: [None]})


@pytest.fixture
def copy(golden, tmp_path):
    return shutil.copytree(golden / "tiny", tmp_path / "checkpoint", ignore=shutil.ignore_patterns("golden.*"))


def test_directories_that_are_no_checkpoint_are_refused_by_what_they_lack(copy):
    cut = copy / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: .*cut short"):
        Policy.from_pretrained(copy)
    cut.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        Policy.from_pretrained(copy)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-00002\.safetensors"):
        Policy.from_pretrained(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        Policy.from_pretrained(copy)


def test_a_checkpoint_without_statistics_loads_and_names_the_file_when_asked_for_actions(copy):
    (copy / "norm_stats.json").unlink()
    refused(Policy.from_pretrained(copy, unroll=False), r"norm_tag: the checkpoint has no norm_stats\.json")


def test_a_checkpoint_without_tokenizer_is_refused(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"tokenizer\.json"):
        Policy.from_pretrained(copy)
