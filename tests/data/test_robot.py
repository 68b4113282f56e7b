"""Robot examples: the released prompt to the id, targets, chunks, cameras, wording, styles."""

import contextlib
import dataclasses
import hashlib
import pickle

import checkpoints
import numpy as np
import pytest

from molmoact2_jax import batch
from molmoact2_jax.data import cameras, memory, normalize, robot
from molmoact2_jax.data.example import Skipped
from molmoact2_jax.data.robot_options import Options, Robot
from molmoact2_jax.data.source import SampleError
from molmoact2_jax.text import actions


def read(directory):
    """An archive with a codec that writes any chunk of the tests."""
    archive = checkpoints.load(directory)
    every_level = [np.full((30, 7), value) for value in np.linspace(-2, 2, 300)]
    archive.codec = actions.ActionCodec.fit(every_level * 2)
    return archive


@pytest.fixture(scope="module")
def tiny(golden):
    return read(golden / "tiny")


@pytest.fixture(scope="module")
def think(golden):
    return read(golden / "tiny_think")


def episode(archive, tag="libero", length=6, seed=0, names=("image", "wrist_image"), **fields):
    """Frames with states and actions inside the tag's statistics."""
    rng = np.random.default_rng(seed)
    stats = archive.stats.tag(tag)

    def inside(of):
        return rng.uniform(of.q01, of.q99, (length, of.width)).astype(np.float32)

    pictures = {name: rng.integers(0, 256, (length, 32, 48, 3), dtype=np.uint8) for name in names}
    depth = {names[0]: rng.integers(0, archive.encoding.ids.num_depths or 128, (length, 100))}
    values = {"task": "pick up the bowl", "depth": depth} | fields
    return memory.Episode(inside(stats.state), inside(stats.action), pictures, **values)


def dataset(archive, episodes=None, tag="libero", fps=10.0, **options):
    tag_entry = dataclasses.replace(archive.stats.tag(tag), **options.pop("tag_fields", {}))
    source = memory.MemorySource("toy", episodes or [episode(archive, tag)], fps)
    known = Robot(tag, tag_entry, archive.stats.mode, archive.codec)
    return robot.RobotDataset(source, known, archive.encoding, Options(**options))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_prompt_equals_the_released_processor_to_the_id(tiny, number):
    case, arrays = tiny.cases[number], tiny.arrays
    tag = tiny.stats.tag(case["tag"])
    pictures = {}
    for i, name in enumerate(tag.cameras):
        if f"case{number}/image{i}" in arrays:
            pictures[name] = arrays[f"case{number}/image{i}"][None]
    state = arrays[f"case{number}/state"][None]
    one = memory.Episode(state, np.zeros((1, tag.action.width), np.float32), pictures, case["task"])
    found = dataset(
        tiny, [one], case["tag"], fps=tag.horizon, action_format="continuous",
        tag_fields={"cameras": tuple(pictures)},
    )  # fmt: skip
    example = found.example(0, 0)
    np.testing.assert_array_equal(example.tokens, arrays[f"case{number}/in/input_ids"][0])
    crops, pooling = found.pixels(example)
    expected = arrays[f"case{number}/in/image_token_pooling"]  # counted inside each picture: 9 tokens, 25 patches
    offset = 25 * (np.arange(len(expected)) // 9)[:, None]
    np.testing.assert_array_equal(pooling, np.where(expected < 0, -1, expected + offset))
    patches = arrays[f"case{number}/in/pixel_values"].reshape(len(crops), -1)
    ours = crops.reshape(len(crops), 5, 14, 5, 14, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(crops), -1)
    np.testing.assert_allclose(ours / np.float32(255) * 2 - 1, patches, atol=1e-6)


def test_the_answer_is_the_codec_stream_and_weighs_two_over_root_n(tiny):
    example = dataset(tiny).example(2, 0)
    ids, supervised = tiny.encoding.ids, example.weights > 0
    answer = example.targets[supervised]
    assert answer[0] == ids.action_start and answer[-2] == ids.action_end and answer[-1] == ids.eos
    np.testing.assert_allclose(example.weights[supervised], 2 / np.sqrt(len(answer)))
    codes = (answer[1:-2] - ids.action_first).tolist()
    chunk = tiny.codec.decode([codes], 10, 7)[0]
    assert np.abs(chunk - example.chunk.actions[:10, :7]).max() < 0.2
    assert example.tokens[np.flatnonzero(supervised)[0]] == ids.action_output  # the trigger is prompt
    np.testing.assert_array_equal(example.tokens[1:], example.targets[:-1])


def test_chunks_are_normalised_padded_and_repeat_the_last_action(tiny):
    one = episode(tiny)
    stats = tiny.stats.tag("libero").action
    found = dataset(tiny, [one]).example(4, 0).chunk
    expected = normalize.normalize(one.action[[4, 5] + [5] * 8], stats, "q01_q99")
    np.testing.assert_array_equal(found.actions[:10, :7], expected)
    assert found.actions.shape == (30, 32) and not found.actions[10:].any() and not found.actions[:, 7:].any()
    np.testing.assert_array_equal(found.valid, np.arange(30) < 10)
    np.testing.assert_array_equal(found.channels, np.arange(32) < 7)


def test_masking_the_end_of_an_episode_trains_only_on_real_steps(tiny):
    found = dataset(tiny, episode_end="mask").example(4, 0).chunk
    np.testing.assert_array_equal(found.valid, np.arange(30) < 2)


@pytest.mark.parametrize(("form", "answered", "acted"), [("continuous", 0, 1), ("discrete", 1, 0), ("both", 1, 1)])
def test_the_action_format_says_who_predicts_actions(tiny, form, answered, acted):
    example = dataset(tiny, action_format=form).example(0, 0)
    assert (example.weights > 0).any() == answered
    assert (example.chunk is not None) == acted == example.meta(0, 0, 0).chunks
    assert tiny.encoding.ids.action_output in example.tokens


@pytest.mark.parametrize("style", ["robot_action", "robot_depth", "robot_depth_action"])
def test_each_style_asks_and_answers_what_it_names(think, style):
    made = dataset(think, styles={style: 1.0})
    example, ids = made.example(1, 0), think.encoding.ids
    answer = example.targets[example.weights > 0]
    depth = (answer >= ids.depth_first) & (answer < ids.depth_first + ids.num_depths)
    assert batch.STYLES[example.style] == style
    assert depth.sum() == (100 if "depth" in style else 0)
    assert (ids.action_start in answer) == ("action" in style) == (example.chunk is not None)
    if depth.any():
        expected = made._source.depth_codes(0, 1, ["image"])
        np.testing.assert_array_equal(answer[depth] - ids.depth_first, expected)


def test_styles_come_at_their_rates_and_anew_each_epoch(think):
    made = dataset(think, [episode(think, length=40)], styles={"robot_action": 1.0, "robot_depth_action": 3.0})
    drawn = [[made.example(i, epoch).style for i in range(40)] for epoch in range(3)]
    assert 0.6 < np.mean([style == 2 for row in drawn for style in row]) < 0.9
    assert drawn[0] != drawn[1] and drawn[0] == [made.example(i, 0).style for i in range(40)]


def test_an_episode_without_depth_codes_is_damaged_and_a_dataset_without_any_is_refused(think):
    styles = {"robot_depth": 1.0}
    with pytest.raises(SampleError, match="no depth codes"):
        dataset(think, [episode(think), episode(think, depth={})], styles=styles).example(6, 0)
    with pytest.raises(ValueError, match="toy: no depth codes, expected for styles"):
        dataset(think, [episode(think, depth={})], styles=styles)
    dataset(think, [episode(think, depth={})], styles={"robot_depth": 0.0, "robot_action": 1.0}).example(0, 0)


def test_camera_order_is_kept_permuted_per_episode_or_per_example(tiny):
    names = tuple("abcde")
    several = [episode(tiny, seed=i, names=names) for i in range(6)]
    fields = {"tag_fields": {"cameras": names}}

    def orders(order):
        made = dataset(tiny, several, camera_order=order, **fields)
        return [[made.example(6 * e + t, t).pictures.cameras for t in range(6)] for e in range(6)]

    assert {c for row in orders("none") for c in row} == {names}
    per_episode = [set(row) for row in orders("episode")]
    assert all(len(row) == 1 for row in per_episode) and len(set.union(*per_episode)) > 3
    assert all(len(set(row)) > 1 for row in orders("all"))


def test_the_episode_order_follows_the_released_recipe():
    found = cameras.episode_order("repo/name", 50189, 3, ("a", "b", "c", "d"))
    text = b"repo/name\n50189\n3\na\nb\nc\nd"
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    np.testing.assert_array_equal(found, np.random.default_rng(seed).permutation(4))


def test_alternative_cameras_are_drawn_per_example_and_at_most_five_are_shown(tiny):
    names = tuple("abcdefg")
    one = episode(tiny, length=40, names=names)
    fields = {"cameras": ("a", "c"), "alternative_cameras": ("b", "c")}
    made = dataset(tiny, [one], tag_fields=fields)
    shown = [made.example(i, 0).pictures.cameras for i in range(40)]
    assert set(shown) == {("a", "c"), ("b", "c")} and 8 < shown.count(("a", "c")) < 32
    example = dataset(tiny, [one], tag_fields={"cameras": ()}).example(0, 0)
    assert example.pictures.cameras == names[:5] and example.num_crops == 5


def test_an_episode_that_was_not_filmed_by_all_cameras_shows_those_it_has(tiny):
    first, second = episode(tiny), episode(tiny, names=("wrist_image",))
    made = dataset(tiny, [first, second])
    assert made.example(0, 0).pictures.cameras == ("image", "wrist_image")
    assert made.example(6, 0).pictures.cameras == ("wrist_image",)
    assert len(made.pixels(made.example(6, 0))[0]) == 1


def test_an_episode_that_none_of_the_cameras_filmed_is_a_damaged_sample(tiny):
    made = dataset(tiny, [episode(tiny), episode(tiny, names=("wrist_image",))], tag_fields={"cameras": ("image",)})
    assert made.example(0, 0).num_crops == 1
    with pytest.raises(SampleError, match=r"toy, episode 1: none of the cameras \['image'\] filmed it"):
        made.example(6, 0)


def test_cameras_match_by_the_end_of_their_names(tiny):
    keys = ("observation.images.wrist_image", "observation.images.image")
    made = dataset(tiny, tag_fields={"cameras": keys})
    assert made.example(0, 0).pictures.cameras == ("wrist_image", "image")
    with pytest.raises(ValueError, match="Name the dataset's cameras"):
        dataset(tiny, tag_fields={"cameras": ("top",)})


def text_of(archive, example):
    return archive.encoding.tokenizer.decode(example.tokens)


def test_annotations_replace_the_task_only_where_asked_and_present(tiny):
    both = [episode(tiny, annotation="grasp the red bowl gently"), episode(tiny, seed=1)]
    made = dataset(tiny, both, annotated_task=True)
    assert "grasp the red bowl gently" in text_of(tiny, made.example(0, 0))
    assert "pick up the bowl" in text_of(tiny, made.example(6, 0))
    assert "pick up the bowl" in text_of(tiny, dataset(tiny, both).example(0, 0))


def test_missing_annotations_are_counted_when_the_dataset_is_opened(tiny, caplog):
    both = [episode(tiny, annotation="grasp the red bowl gently"), episode(tiny, seed=1)]
    dataset(tiny, both)
    assert "annotated" not in caplog.text
    dataset(tiny, both, annotated_task=True)
    assert "toy: 1 of 2 episodes have no annotated instruction, their own is used" in caplog.text


def test_sampled_annotations_come_from_episodes_of_the_same_task(tiny):
    notes = [("pick", "one"), ("pick", "two"), ("place", "three")]
    several = [episode(tiny, seed=i, task=task, annotation=note) for i, (task, note) in enumerate(notes)]
    made = dataset(tiny, several, annotated_task=True, sampled_annotation=True)
    texts = [text_of(tiny, made.example(0, epoch)) for epoch in range(30)]
    found = {word for text in texts for word in ("one", "two", "three") if f"task is to {word}." in text}
    assert found == {"one", "two"}


def test_a_frozen_episode_gives_way_to_another_frame_or_is_skipped(tiny):
    frozen, sound = episode(tiny, annotation=robot.FROZEN), episode(tiny, seed=1, annotation="wipe")
    made = dataset(tiny, [frozen, sound, sound, sound], annotated_task=True)
    assert {made.example(0, epoch).pictures.episode for epoch in range(20)} <= {1, 2, 3}
    with pytest.raises(Skipped, match="frozen"):
        dataset(tiny, [frozen], annotated_task=True).example(0, 0)
    made._source.valid[6:18] = False  # what takes the place is not quarantined either
    shown = []
    for epoch in range(60):
        with contextlib.suppress(Skipped):
            shown.append(made.example(0, epoch).pictures.episode)
    assert set(shown) == {3} and len(shown) > 30


def test_quarantined_frames_are_skipped_without_renumbering(tiny):
    made = dataset(tiny)
    made._source.valid[2] = False
    assert len(made) == 6
    with pytest.raises(Skipped, match="quarantined"):
        made.example(2, 0)
    assert made.example(3, 0).pictures.frame == 3


def test_a_chunk_that_the_codec_cannot_write_is_noted_or_skipped_by_name(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "codec", actions.ActionCodec.fit([np.zeros((10, 7)), np.ones((10, 7))]))
    kept = dataset(tiny, unwritable="keep").example(0, 0)
    assert kept.chunk is not None and kept.note == "actions the codec cannot write"
    with pytest.raises(Skipped, match="cannot write"):
        dataset(tiny, unwritable="skip").example(0, 0)


def test_nan_in_a_state_is_a_damaged_sample_that_names_its_place(tiny):
    one = episode(tiny)
    one.state[3, 1] = np.nan
    with pytest.raises(SampleError, match="toy, episode 0, frame 3: state channel 1"):
        dataset(tiny, [one]).example(3, 0)


def test_an_example_without_an_instruction_is_noted(tiny):
    assert dataset(tiny, [episode(tiny, task=" ")]).example(0, 0).note == "no instruction"
    assert dataset(tiny).example(0, 0).note == ""


def test_a_task_that_holds_a_placeholder_is_a_damaged_sample(tiny):
    with pytest.raises(SampleError, match="placeholders"):
        dataset(tiny, [episode(tiny, task="look at <|image|>")]).example(0, 0)


def test_host_augmentation_changes_pixels_alike_for_the_same_example_only(tiny):
    plain, moved = dataset(tiny), dataset(tiny, augment="full")
    a, b, c = (moved.pixels(moved.example(1, epoch))[0] for epoch in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any() and (a != plain.pixels(plain.example(1, 0))[0]).any()


def test_a_dataset_pickles_and_makes_the_same_examples(tiny):
    made = dataset(tiny)
    copy = pickle.loads(pickle.dumps(made))
    for name in ("tokens", "targets", "weights"):
        np.testing.assert_array_equal(getattr(made.example(3, 1), name), getattr(copy.example(3, 1), name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tag": "yam"}, "expected 14 from the statistics"),
        ({"horizon": 8}, "Shorten the tag's horizon"),
        ({"channels": 6}, "widen the model"),
        ({"styles": {"robot_depth": 1.0}}, r"no \['depth'\] tokens"),
        ({"styles": {"robot_dance": 1.0}}, "robot_dance"),
        ({"styles": {"robot_action": 0.0}}, "at least one rate"),
        ({"episode_end": "drop"}, "episode_end"),
        ({"camera_order": "random"}, "camera_order"),
        ({"action_format": "tokens"}, "action_format"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(tiny, change, words):
    with pytest.raises(ValueError, match=words):
        dataset(tiny, [episode(tiny)], **change)
