"""Multimodal sets: every kind of record, its tokens, weights and pixels; damage by name; the registry of the paper."""

import dataclasses
import json
import math
import pickle

import checkpoints
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from molmoact2_jax import batch
from molmoact2_jax.data import clips, films, images, pictures, records, video, vlm, vlm_registry
from molmoact2_jax.data.example import Skipped, Weighting
from molmoact2_jax.data.source import SampleError
from molmoact2_jax.text import pointing, prompt

WIDTH, HEIGHT = 80, 60


@pytest.fixture(scope="module")
def encoding(golden):
    return checkpoints.load(golden / "tiny").encoding


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    """A directory with two pictures and a video of two seconds beside the records."""
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(pictures.encode_png(picture(i)))
    encoder = video.Encoder(tmp_path / "clip.mp4", 10, (HEIGHT, WIDTH), "libx264")
    for i in range(20):
        encoder.add(np.full((HEIGHT, WIDTH, 3), 12 * i, np.uint8))
    encoder.close()
    return tmp_path


def opened(root, encoding, found, **options):
    (root / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    return vlm.VlmDataset(vlm.Set.open("set", root), encoding, vlm.Options(**options))


def asked(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def example_of(root, encoding, record, **options):
    return opened(root, encoding, [record], **options).example(0, 0)


def learnt(encoding, example):
    """The text of the supervised targets."""
    return encoding.tokenizer.decode(example.targets[example.weights > 0])


def test_a_question_about_one_picture(root, encoding):
    record = {"images": ["0.png"], "style": "vqa2", "messages": asked("What is it?", "A cup")}
    example = example_of(root, encoding, record)
    grid, crops = images.layout(HEIGHT, WIDTH, encoding.processor)
    image = prompt.image_tokens(encoding.ids, grid, encoding.processor)
    text = prompt.chat([prompt.Message("user", "What is it?", "vqa2")], visuals=prompt.IMAGE)
    expected = prompt.encode_prompt(encoding.tokenizer, encoding.ids, text, [image])
    answer = prompt.encode_answer(encoding.tokenizer, encoding.ids, "A cup")
    np.testing.assert_array_equal(example.tokens, np.concatenate([expected, answer[:-1]]))
    np.testing.assert_array_equal(example.targets, np.concatenate([expected[1:], answer]))
    np.testing.assert_array_equal(np.flatnonzero(example.weights), len(expected) - 1 + np.arange(len(answer)))
    np.testing.assert_allclose(example.weights[-1], 2 / math.sqrt(len(answer)))
    assert example.num_crops == crops == 1 and not example.segments.any() and example.chunk is None
    assert batch.STYLES[example.style] == "vlm"
    assert "vqa2: What is it?" in encoding.tokenizer.decode(example.tokens)


def test_pixels_are_the_resized_pictures_in_order(root, encoding):
    made = opened(root, encoding, [{"images": ["1.png", "0.png"], "messages": asked("Same?", "no")}])
    example = made.example(0, 0)
    crops, pooling = made.pixels(example)
    for found, seed in zip(crops, (1, 0)):
        np.testing.assert_array_equal(found, images.resize(picture(seed), encoding.processor.image_size))
    assert len(pooling) == (example.tokens == encoding.ids.image_patch).sum()
    assert pooling.max() == 2 * encoding.patches - 1
    assert encoding.tokenizer.decode(example.tokens).count("Image ") == 2


def test_a_text_alone_has_no_pictures(root, encoding):
    made = opened(root, encoding, [{"messages": asked("Two and two?", "Four")}])
    example = made.example(0, 0)
    crops, pooling = made.pixels(example)
    assert example.num_crops == len(crops) == len(pooling) == 0
    assert example.tokens[0] == encoding.ids.bos and learnt(encoding, example).startswith("Four")


def test_a_conversation_closes_each_answer_and_learns_all_of_them(root, encoding):
    messages = asked("Who?", "Ann") + asked("Where?", "Home")
    example = example_of(root, encoding, {"messages": messages, "style": "user_qa"})
    text, eos = encoding.tokenizer, encoding.ids.eos
    parts = [
        [encoding.ids.bos], text.encode(prompt.user_turn("Who?")), text.encode("Ann"), [eos],
        text.encode(prompt.user_turn("Where?", first=False)), text.encode("Home"),
    ]  # fmt: skip
    np.testing.assert_array_equal(example.tokens, np.concatenate(parts))
    answers = [*text.encode("Ann"), eos, *text.encode("Home"), eos]
    np.testing.assert_array_equal(example.targets[example.weights > 0], answers)
    np.testing.assert_allclose(example.weights[example.weights > 0], 2 / math.sqrt(len(answers)))


def test_conversations_about_one_picture_share_it_and_do_not_see_each_other(root, encoding):
    talks = [asked("Red?", "yes"), asked("Blue or green?", "blue, I think")]
    example = example_of(root, encoding, {"images": ["0.png"], "conversations": talks})
    shared = example.segments == batch.SHARED_PREFIX
    np.testing.assert_array_equal(example.positions[shared], np.arange(shared.sum()))
    for j, turns in enumerate(talks):
        own = example.segments == j
        alone = example_of(root, encoding, {"images": ["0.png"], "messages": turns})
        np.testing.assert_array_equal(example.tokens[shared | own], alone.tokens)
        np.testing.assert_array_equal(example.positions[shared | own], alone.positions)
        np.testing.assert_array_equal(example.targets[own], alone.targets[shared.sum() :])
        np.testing.assert_allclose(example.weights[own] * math.sqrt(2), alone.weights[shared.sum() :], rtol=1e-6)
    sees = (np.arange(len(shared))[:, None] >= np.arange(len(shared))) & (example.segments[:, None] <= example.segments)
    second, first = (example.segments == j for j in (1, 0))
    assert not sees[np.ix_(second, first)].any() and sees[np.ix_(second, shared)].all()


def test_a_video_shows_frames_at_its_times(root, encoding):
    made = opened(root, encoding, [{"video": "clip.mp4", "messages": asked("What changes?", "light")}])
    example = made.example(0, 0)
    times = clips.times(2.0, encoding.processor)
    np.testing.assert_allclose(example.pictures.seconds, times)
    assert example.num_crops == len(times) == 5
    assert (example.tokens == encoding.ids.frame_start).sum() == 5
    crops, pooling = made.pixels(example)
    assert pooling.shape == ((example.tokens == encoding.ids.image_patch).sum(), encoding.processor.video_pooling**2)
    shown = np.minimum((times * 10).round(), 19)
    np.testing.assert_allclose(crops.mean(axis=(1, 2, 3)), 12 * shown, atol=6)


def test_a_long_video_shows_eight_frames_from_its_start_to_its_end(root, encoding):
    example = example_of(root, encoding, {"video": "clip.mp4", "duration": 60.0, "messages": asked("?", "!")})
    np.testing.assert_allclose(example.pictures.seconds, np.linspace(0, 60, 8))


def test_subtitles_stand_between_video_and_question(root, encoding):
    record = {"video": "clip.mp4", "subtitle": "hello there", "messages": asked("Who speaks?", "Ann")}
    text = encoding.tokenizer.decode(example_of(root, encoding, record).tokens)
    assert 0 < text.index("hello there") < text.index("Who speaks?")


MARKS = [[1, 40, 30], [1, 8, 45]]
MARKED = [{"role": "user", "content": "Where?"}, {"role": "assistant", "marks": {"boxes": [[1, 2, 3, 4]]}}]


@pytest.mark.parametrize("sizes", [None, [[WIDTH, HEIGHT]]])
@pytest.mark.parametrize("mode", [None, *pointing.ANSWERS])
def test_points_are_printed_with_sizes_from_the_record_or_the_picture(root, encoding, mode, sizes):
    marks = {"points": MARKS, "label": "mug", "mode": mode}
    turns = [{"role": "user", "content": "Point to the mug."}, {"role": "assistant", "marks": marks}]
    example = example_of(root, encoding, {"images": ["0.png"], "style": "pointing", "messages": turns, "sizes": sizes})
    tag = '<points coords="1 1 100 750 2 500 500">mug</points>'
    expected = pointing.answer(mode or "point", tag, 2)
    assert learnt(encoding, example).removesuffix("<|im_end|>") == expected


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({"boxes": [[8, 6, 40, 30]], "label": "door"}, '<boxes coords="1 1 100 100 500 500">door</boxes>'),
        ({"boxes": [], "label": "door"}, pointing.NONE),
        ({"points": [], "label": "door"}, pointing.NONE),
    ],
)
def test_boxes_and_absence_are_printed(root, encoding, marks, expected):
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "marks": marks}]
    example = example_of(root, encoding, {"images": ["0.png"], "messages": turns})
    assert learnt(encoding, example).removesuffix("<|im_end|>") == expected


def test_points_and_tracks_in_videos_name_seconds(root, encoding):
    for kind, rows, expected in (
        ("points", [[0.5, 40, 30]], '<points coords="0.5 1 500 500">cup</points>'),
        ("tracks", [[0.0, 40, 30, 0], [0.5, 48, 30, 0]], '<tracks coords="0.0 1 500 500;0.5 1 600 500">cup</tracks>'),
    ):
        turns = [
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "marks": {kind: rows, "label": "cup"}},
        ]
        example = example_of(root, encoding, {"video": "clip.mp4", "messages": turns})
        assert learnt(encoding, example).removesuffix("<|im_end|>") == expected


def test_weights_of_a_set_replace_the_roots(root, encoding):
    record = {"messages": asked("Caption", "a long caption of many words")}
    example = example_of(root, encoding, record, weighting=vlm_registry.CAPTIONS)
    np.testing.assert_allclose(example.weights[example.weights > 0], 0.1)


def test_tiles_are_planned_without_pixels(root, encoding):
    tiled = dataclasses.replace(
        encoding, processor=dataclasses.replace(encoding.processor, crop_mode="overlap-and-resize-c2")
    )
    record = {"images": ["0.png", "1.png"], "messages": asked("?", "!")}
    for options in ({}, {"high_res": 1.0, "high_res_crops": 9}):
        made = opened(root, tiled, [record], **options)
        example = made.example(0, 0)
        crops, pooling = made.pixels(example)
        assert example.num_crops == len(crops) > 2
        assert len(pooling) == (example.tokens == encoding.ids.image_patch).sum()


@pytest.mark.parametrize(("height", "width"), [(60, 80), (480, 640), (256, 256), (1500, 400), (20, 700)])
def test_the_layout_is_what_cutting_gives(encoding, height, width):
    settings = dataclasses.replace(encoding.processor, crop_mode="overlap-and-resize-c2")
    found = images.crops_of(np.zeros((height, width, 3), np.uint8), settings)
    assert images.layout(height, width, settings) == (found.grid, len(found.pixels))


def test_more_than_five_pictures_are_skipped_not_cut(root, encoding):
    made = opened(root, encoding, [{"images": [f"{i}.png" for i in range(6)], "messages": asked("?", "!")}])
    with pytest.raises(Skipped, match="more than 5 pictures"):
        made.example(0, 0)


def test_host_augmentation_is_a_function_of_the_example(root, encoding):
    made = opened(root, encoding, [{"images": ["0.png"], "messages": asked("?", "!")}], augment="full")
    a, b, c = (made.pixels(made.example(0, epoch))[0] for epoch in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"images": ["0.png"]}, "messages"),
        ({"messages": []}, "expected user, assistant"),
        ({"messages": asked("?", "!")[:1]}, "expected user, assistant"),
        ({"messages": asked("?", None)}, "Error"),
        ({"messages": asked("a <im_patch> b", "!")}, "spells image tokens"),
        ({"messages": asked("?", "!"), "video": "none.mp4"}, "none.mp4"),
        ({"messages": asked("?", "!"), "images": 3}, "TypeError"),
        ({"messages": asked("?", "!"), "images": ["0.png"], "video": "clip.mp4"}, "expected either"),
        ({"messages": asked("?", "!"), "video": "clip.mp4", "duration": -1.0}, "seconds above 0"),
        ({"messages": asked("?", "!"), "video": "clip.mp4", "duration": math.nan}, "seconds above 0"),
        ({"images": ["0.png"], "sizes": [[1, 1], [2, 2]], "messages": MARKED}, "sizes: 2, expected 1"),
    ],
)  # fmt: skip
def test_a_bad_record_is_a_damaged_sample_with_its_number(root, encoding, record, words):
    made = opened(root, encoding, [{"messages": asked("?", "!")}, record])
    with pytest.raises(SampleError, match=words) as caught:
        made.example(1, 0)
    assert caught.value.dataset == "set" and caught.value.episode == 1


@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_bad_picture_is_a_damaged_sample(root, encoding, damage):
    path = root / "0.png"
    data = path.read_bytes()
    {"missing": path.unlink, "empty": lambda: path.write_bytes(b""), "cut": lambda: path.write_bytes(data[:900])}[
        damage
    ]()
    made = opened(root, encoding, [{"images": ["0.png"], "messages": asked("?", "!")}])
    with pytest.raises(SampleError, match="set, episode 0"):
        made.pixels(made.example(0, 0))


def test_a_bad_video_is_a_damaged_sample(root, encoding):
    data = (root / "clip.mp4").read_bytes()
    (root / "clip.mp4").write_bytes(data[: len(data) // 2])
    made = opened(root, encoding, [{"video": "clip.mp4", "duration": 2.0, "messages": asked("?", "!")}])
    with pytest.raises(SampleError):
        made.pixels(made.example(0, 0))


def test_frames_on_screen_are_those_that_began_last(root):
    begins = films.starts(str(root / "clip.mp4"))
    np.testing.assert_allclose(begins, np.arange(20) / 10, atol=1e-6)
    shown = films.show(video.Decoders(), str(root / "clip.mp4"), [0.0, 0.09, 0.1, 1.95, 99.0])
    np.testing.assert_allclose(shown.mean(axis=(1, 2, 3)) / 12, [0, 0, 1, 19, 19], atol=0.4)


def test_lines_are_found_whatever_ends_them(tmp_path):
    found = [{"n": i, "text": "ü" * i} for i in range(5)]
    first = "\n".join(json.dumps(r, ensure_ascii=False) for r in found[:3])  # no end of line after the last
    second = "".join(json.dumps(r) + "\r\n\n" for r in found[3:])
    (tmp_path / "a.jsonl").write_text(first, "utf-8")
    (tmp_path / "b.jsonl").write_bytes(second.encode())
    lines = records.open_records(tmp_path)
    assert [lines[i] for i in range(len(lines))] == found
    copy = pickle.loads(pickle.dumps(records.open_records(tmp_path)))
    assert [copy[i] for i in range(len(copy))] == found and copy.digest == lines.digest


def test_parquet_holds_the_same_examples_pictures_inside(root, encoding):
    found = [
        {"images": [f"{i}.png"], "style": "vqa2", "messages": asked(f"Is it {i}?", "yes"), "sizes": None}
        for i in range(5)
    ]
    made = opened(root, encoding, found)
    inside = root / "tables"
    inside.mkdir()
    rows = [r | {"images": [{"bytes": (root / r["images"][0]).read_bytes(), "path": None}]} for r in found]
    parquet.write_table(pyarrow.Table.from_pylist(rows), inside / "a.parquet", row_group_size=2)
    tables = pickle.loads(pickle.dumps(vlm.VlmDataset(vlm.Set.open("set", inside), encoding)))
    assert len(tables) == 5
    for i in (4, 0, 3):
        ours, theirs = tables.example(i, 0), made.example(i, 0)
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_array_equal(tables.pixels(ours)[0], made.pixels(theirs)[0])


def test_bad_bytes_in_lines_are_damaged_samples(root, encoding):
    (root / "train.jsonl").write_bytes(b'{"messages": "\xff"}\nnot json\n[1]\n')
    made = vlm.VlmDataset(vlm.Set.open("set", root), encoding)
    for i in range(3):
        with pytest.raises(SampleError, match=r"train\.jsonl"):
            made.example(i, 0)


def test_a_damaged_parquet_file_is_named_and_a_damaged_page_is_a_damaged_sample(tmp_path, encoding):
    rows = [{"messages": asked(f"{i}?", "yes")} for i in range(4)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2, write_page_checksum=True)
    made = vlm.VlmDataset(vlm.Set.open("set", tmp_path), encoding)
    data = bytearray(path.read_bytes())
    chunk = parquet.read_metadata(path).row_group(1).column(0)
    data[chunk.dictionary_page_offset + chunk.total_compressed_size - 2] ^= 1
    path.write_bytes(data)
    assert made.example(1, 0).num_crops == 0
    with pytest.raises(SampleError, match=r"set, episode 2: .*a.parquet, row group 1: .*CRC"):
        made.example(2, 0)
    path.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"a.parquet: no Parquet file can be opened"):
        vlm.Set.open("set", tmp_path)


def test_a_directory_without_records_or_with_both_kinds_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"0 \.jsonl and 0 \.parquet"):
        records.open_records(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no records"):
        records.open_records(tmp_path)


def test_the_mixtures_are_those_of_the_paper():
    general = vlm_registry.MIXTURES["general"]
    table = {
        "image_qa": 0.115, "video_qa": 0.092, "image_pointing": 0.046, "video_pointing": 0.069, "video_tracking": 0.069,
        "captions": 0.069, "er_image_qa": 0.11, "er_pointing": 0.11, "er_detection": 0.01, "er_video_qa": 0.10,
        "er_multi_image": 0.09, "er_abstract": 0.04, "nlp": 0.08,
    }  # fmt: skip
    assert general == pytest.approx(table)
    assert vlm_registry.MIXTURES["er_stage1"]["er_image_qa"] == pytest.approx(0.22)
    for rates in vlm_registry.MIXTURES.values():
        assert math.isclose(sum(rates.values()), 1)
        assert set(rates) <= {row.group for row in vlm_registry.ROWS}
    names = [row.name for row in vlm_registry.ROWS]
    assert len(set(names)) == len(names)


def test_sets_that_are_not_on_disk_are_returned_and_logged(tmp_path, encoding, caplog):
    for name, count in (("sat", 4), ("tulu4", 9)):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"messages": asked(f"{i}?", "yes")}) + "\n" for i in range(count)]
        (tmp_path / name / "train.jsonl").write_text("".join(lines))
    found = vlm_registry.open_sets(tmp_path, encoding)
    assert [d.name for d in found.datasets] == ["sat", "tulu4"]
    assert [share.size for share in found.shares] == [4, 9]
    assert len(found.missing) == len(vlm_registry.ROWS) - 2 and "clevr" in found.missing
    assert "clevr" in caplog.text and "no row names" not in caplog.text
    (tmp_path / "my_set").mkdir()
    vlm_registry.open_sets(tmp_path, encoding)
    assert "no row names these directories, they are not read: my_set" in caplog.text
    with pytest.raises(ValueError, match="none of the"):
        vlm_registry.open_sets(tmp_path / "sat", encoding)
    with pytest.raises(ValueError, match="expected one of"):
        vlm_registry.open_sets(tmp_path, encoding, "best")


def test_default_weights_are_the_roots():
    assert Weighting() == vlm_registry.ROWS[0].weighting and vlm_registry.POINTING.weight == 0.2
