import dataclasses
import json
import pathlib

import numpy as np
import pytest

from molmoact2_jax import config
from molmoact2_jax.data import images
from molmoact2_jax.text import prompt, styles

NORMALIZED = [
    ("Instruction: Pick up the cube, please!", "pick up the cube, please"),
    ("The task is to open drawer. Then close it.", "open drawer; then close it"),
    ('Task: "Fold the towel!" ', "fold the towel"),
    ("Put 3.5 cups", "put 3; 5 cups"),
    ("pick up (blue cube)", "pick up (blue cube"),
    ("task: Goal - language_instruction:  your task is to  GO", "go"),
    ("  (('wave'))…;, ", "wave"),
    ("..pick up", "..pick up"),
    ("a.\tb!?c", "a; b; c"),
    ("The task is to", "the task is to"),
    ("Task:", ""),
    (" \n ", ""),
]


@pytest.mark.parametrize(("raw", "expected"), NORMALIZED)
def test_task_takes_the_form_of_the_training_data(raw, expected):
    assert prompt.normalize_task(raw) == expected


def test_recorded_tasks_are_normalised_as_released():
    """Pairs of random strings and what the released classes made of them."""
    pairs = json.loads((pathlib.Path(__file__).parent / "task_strings.json").read_text())
    assert len(pairs) > 200
    for raw, expected in pairs:
        assert prompt.normalize_task(raw) == expected, raw


def test_task_must_be_a_string():
    with pytest.raises(ValueError, match="task: NoneType"):
        prompt.normalize_task(None)


def _case_prompt(archive, index, style="robot_action"):
    case, meta = archive.cases[index], archive.stats[archive.cases[index]["tag"]]
    bins = [int(b) for b in case["prompt"].split("<state_start><state_")[1].split("><state_end>")[0].split("><state_")]
    task = prompt.normalize_task(case["task"])
    question = prompt.robot_question(task, meta["setup_type"], meta["control_mode"], bins, style)
    return prompt.robot_prompt(question, style, case["n_images"])


@pytest.mark.parametrize("index", range(3))
def test_robot_prompt_is_the_released_one(archive, index):
    assert _case_prompt(archive, index) == archive.cases[index]["prompt"]


@pytest.mark.parametrize("index", range(3))
def test_prompt_ids_are_the_released_ones(archive, index):
    tokens = prompt.image_tokens(archive.ids, (3, 3, 0, 0), archive.settings)
    ids = prompt.encode_prompt(
        archive.tokenizer, archive.ids, _case_prompt(archive, index), [tokens] * archive.cases[index]["n_images"]
    )
    expected = archive.arrays[f"case{index}/in/input_ids"][0]
    np.testing.assert_array_equal(ids, expected)
    kinds = archive.arrays[f"case{index}/in/token_type_ids"][0]
    np.testing.assert_array_equal(prompt.image_mask(ids, archive.ids), kinds)


def test_every_style_has_its_question_and_trigger():
    expected = {
        "robot_action": ("Given these, what action should the robot take to complete the task?", "<action_output>"),
        "robot_depth": ("Given these, what is the depth map of the main image?", "<depth_output>"),
        "robot_depth_action": (
            "Given these, first predict the depth map of the main image and then predict the action the robot should "
            "take to complete the task?",
            "<depth_output><action_output>",
        ),
    }
    for style, (question, trigger) in expected.items():
        text = prompt.robot_prompt(prompt.robot_question("go", "arm", "pose", [1], style), style, 1)
        head = "The task is to go. The setup is <setup_start>arm<setup_end>. The current state of the robot is "
        state = "<state_start><state_1><state_end>. The expected control mode is <control_start>pose<control_end>. "
        turn = f"<|im_start|>user\n{head}{state}{question}<|im_end|>\n<|im_start|>assistant\n{trigger}"
        assert text == f"<|image|>{turn}"
    with pytest.raises(ValueError, match="robot_dance"):
        prompt.robot_question("go", "arm", "pose", None, "robot_dance")


def test_without_state_its_sentence_is_left_out():
    assert "current state" not in prompt.robot_question("go", "arm", "pose", None, "robot_action")


def test_empty_and_marked_setups_are_left_alone():
    marked = "<setup_start>arm<setup_end>"

    def ask(setup, **options):
        return prompt.robot_question("go", setup, "pose", None, "robot_action", **options)

    assert "The setup is . The" in ask("")
    assert ask(marked) == ask("arm")
    assert "The setup is arm. " in ask("arm", setup_tokens=False)
    assert "control mode is pose. " in ask("arm", control_tokens=False)


def test_answers_are_written_as_the_model_generates_them(archive):
    assert prompt.depth_answer([3, 127]) == "<depth_start><depth_3><depth_127><depth_end>"
    ids = prompt.encode_answer(archive.tokenizer, archive.ids, prompt.action_answer(np.array([0, 2047])))
    first = archive.ids.action_first
    assert ids.tolist() == [archive.ids.action_start, first, first + 2047, archive.ids.action_end, archive.ids.eos]


def test_training_answers_of_the_archive_are_reproduced(archive):
    arrays = archive.arrays
    bins = arrays["case0/target_action_tokens"]
    ids = prompt.encode_answer(archive.tokenizer, archive.ids, prompt.action_answer(bins))
    assert ids[1:-2].tolist() == (bins + archive.ids.action_first).tolist()
    assert ids[-1] == arrays["train/targets"][0, -1]


def test_tiled_pictures_have_two_frames_of_tokens(archive):
    ids, settings = archive.ids, archive.settings
    tokens = prompt.image_tokens(ids, (2, 2, 1, 3), settings)
    whole = [ids.low_res_image_start, *[ids.image_patch] * 4, ids.image_end]
    assert tokens.tolist() == [*whole, ids.image_start, *[ids.image_patch] * 3, ids.image_col, ids.image_end]


def test_image_tokens_are_as_many_as_pooled_features(archive):
    for shape in ((50, 60), (300, 100)):
        for mode in ("resize", "overlap-and-resize-c2"):
            settings = config.ProcessorConfig(image_size=70, max_crops=4, overlap_margins=(1, 1), crop_mode=mode)
            crops = images.crops_of(np.zeros((*shape, 3), np.uint8), settings)
            tokens = prompt.image_tokens(archive.ids, crops.grid, settings)
            assert (tokens == archive.ids.image_patch).sum() == len(crops.pooling)


def test_videos_show_the_time_before_each_frame(archive):
    ids, tokenizer = archive.ids, archive.tokenizer
    tokens = prompt.video_tokens(tokenizer, ids, [0.0, 0.5], (1, 2), archive.settings)
    text = "0.0 <frame_start><im_patch><im_patch><frame_end> 0.5 <frame_start><im_patch><im_patch><frame_end>"
    assert tokens.tolist() == tokenizer.encode(text)
    plain = config.ProcessorConfig(frame_tokens=False, video_col_tokens=True)
    tokens = prompt.video_tokens(tokenizer, ids, [1.26], (2, 1), plain)
    assert tokenizer.decode(tokens) == "1.3 <im_start><im_patch><im_col><im_patch><im_col><im_end>"


def test_encoding_pieces_equals_encoding_the_whole_string(archive):
    """Every seam is a special token, so nothing merges across it."""
    text = prompt.chat([prompt.Message("user", "what is it?")], visuals=prompt.image_placeholders(2))
    tokens = prompt.image_tokens(archive.ids, (3, 3, 0, 0), archive.settings)
    whole = text.replace(prompt.IMAGE, archive.tokenizer.decode(tokens))
    ids = prompt.encode_prompt(archive.tokenizer, archive.ids, text, [tokens, tokens])
    assert ids.tolist() == [archive.ids.bos, *archive.tokenizer.encode(whole)]


def test_bos_is_not_doubled(archive):
    ids = prompt.encode_prompt(archive.tokenizer, archive.ids, "<|im_end|>hello")
    assert (ids == archive.ids.bos).sum() == 1


def test_placeholder_in_a_task_is_refused_rather_than_filled(archive):
    with pytest.raises(ValueError, match="2 placeholders for 1"):
        prompt.encode_prompt(archive.tokenizer, archive.ids, "<|image|>look at <|image|>", [np.zeros(3, np.int32)])


def test_conversations_close_each_answer_before_the_next_turn():
    turns = [prompt.Message("user", "hi"), prompt.Message("assistant", "yes"), prompt.Message("user", "why", "vqa2")]
    text = prompt.chat(turns, visuals=prompt.VIDEO)
    assert text == (
        "<|video|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nvqa2: why<|im_end|>\n<|im_start|>assistant\n"
    )


def test_subtitles_follow_the_video():
    turns = [prompt.Message("subtitle", "0.0 - 1.0 hello"), prompt.Message("user", "hi")]
    assert prompt.chat(turns, visuals=prompt.VIDEO) == "<|video|>0.0 - 1.0 hello" + prompt.user_turn("hi")


@pytest.mark.parametrize("roles", [[], ["assistant"], ["user", "user"], ["user", "assistant"], ["system", "user"]])
def test_roles_must_alternate_and_end_with_the_user(roles):
    with pytest.raises(ValueError, match="messages: roles"):
        prompt.chat([prompt.Message(role, "x") for role in roles])


def test_only_plain_styles_go_without_a_prefix():
    assert styles.prefix("") == styles.prefix("user_qa") == styles.prefix("eval_multiple_choice") == ""
    assert styles.prefix("eval_short_answer") == "vqa2: "
    assert styles.prefix("video_eval_short_answer") == "video_short_answer: "
    assert styles.prefix("eval_multi_image_qa") == "multi_image_qa: "


def test_a_vocabulary_without_frame_markers_cannot_show_videos(archive):
    ids = dataclasses.replace(archive.ids, frame_start=None)
    with pytest.raises(ValueError, match="no frame markers"):
        prompt.video_tokens(archive.tokenizer, ids, [0.0], (1, 1), archive.settings)
