import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from molmoact2_jax.serve import fields

A, B, C = (np.full((2, 3, 3), level, np.uint8) for level in (1, 2, 3))
STATE = np.arange(8, dtype=np.float32)
TWO = ("observation.images.image", "observation.images.wrist_image")
YAM = ("observation.images.top", "observation.images.left", "observation.images.right")
DROID = ("exterior_1_left", "wrist_left")


def read(body, cameras=TWO):
    return fields.request({"instruction": "pick", "state": STATE, **body}, cameras)


def levels(request):
    return [int(picture.flat[0]) for picture in request.images]


@pytest.mark.parametrize(
    ("cameras", "body"),
    [
        (TWO, {"images": [A, B]}),
        (TWO, {"images": np.stack([A, B])}),
        (TWO, {"images": {"wrist_image": B, "image": A}}),
        (TWO, {TWO[1]: B, TWO[0]: A}),
        (TWO, {"wrist_image": B, "image": A}),
        (TWO, {"image": A, "image1": B}),
        (TWO, {"observation/wrist_image": B, "observation/image": A}),
        (DROID, {"external_cam": A, "wrist_cam": B}),
        (DROID, {"observation/exterior_image_1_left": A, "observation/wrist_image_left": B}),
        (DROID, {"observation/exterior_image_0_left": A, "observation/wrist_image_left": B}),
        (YAM, {"right_cam": C, "top_cam": A, "left_cam": B}),
        (("e1", "e2", "w"), {
            "observation/wrist_image_left": C, "observation/exterior_image_0_left": A,
            "observation/exterior_image_1_left": B,
        }),
        (("front",), {"image": A}),
        (("front",), {"front": A}),
    ],
)  # fmt: skip
def test_pictures_are_found_under_every_known_name_in_the_order_of_the_cameras(cameras, body):
    assert levels(read(body, cameras)) == [1, 2, 3][: len(cameras)]
    assert read(body, cameras).ignored == ()


def test_pictures_may_be_lists_or_compressed():
    file = io.BytesIO()
    Image.fromarray(A).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    assert levels(read({"images": [text, B.tolist()]})) == [1, 2]


@pytest.mark.parametrize("key", ["instruction", "task", "prompt", "question"])
@pytest.mark.parametrize("state", ["state", "states", "observation/state"])
def test_task_and_state_are_found_under_every_known_name(key, state):
    asked = fields.request({key: "pick", state: STATE.tolist(), "images": [A, B]}, TWO)
    assert asked.task == "pick"
    np.testing.assert_array_equal(asked.state, STATE)


def test_a_state_in_parts_is_joined():
    parts = {"observation/joint_position": STATE[:7], "observation/gripper_position": STATE[7:]}
    asked = fields.request({"prompt": "pick", "images": [A, B], **parts}, TWO)
    np.testing.assert_array_equal(asked.state, STATE)


def test_encoded_text_holds_the_fields():
    inner = json.dumps({"task": "pick", "state": [1, 2], "images": [A.tolist(), B.tolist()]})
    assert fields.request({"encoded": inner}, TWO).task == "pick"


@pytest.mark.parametrize(
    ("body", "style"),
    [
        ({}, "stateless"),
        ({"action_chunk": "Yes"}, "chunk"),
        ({"action_chunk": "0"}, "stateless"),
        ({"single_action": True}, "single"),
        ({"single_action": 1, "action_chunk": "on"}, "single"),
        ({"single_action": STATE}, "stateless"),
    ],
)
def test_truthy_words_choose_the_style(body, style):
    assert read({"images": [A, B], **body}).style == style


def test_what_no_one_reads_is_told():
    asked = read({"images": [A, B], "num_step": 4, "timestamp": 1.5, "enable_cuda_graph": True})
    assert asked.ignored == ("num_step",)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, r"images: missing, expected 2 \(image, wrist_image\)"),
        ({"image": A}, None),
        ({"images": "all"}, "images: str, expected a list"),
        ({"images": {"image": A}}, r"images: \['image'\], expected \['image', 'wrist_image'\]"),
        ({"images": [A, [[1], [2, 3]]]}, r"images\[1\] \(1\): lists of different lengths"),
        ({"images": [A, ["a"]]}, r"images\[1\] \(1\): list, expected numbers"),
        ({"images": [A, B[0, 0]]}, r"images\[1\] \(1\): shape \[3\], expected \[height, width, 3\]"),
        ({"images": [A, "/etc/passwd"]}, r"images\[1\] \(1\): .*base64"),
        ({"images": [A, B], "state": {"a": 1}}, "state: dict, expected numbers"),
        ({"images": [A, B], "state": ["x"]}, "state: list, expected numbers"),
        ({"images": [A, B], "instruction": None}, "instruction: missing"),
        ({"images": [A, B], "instruction": 3}, "instruction: int, expected text"),
        ({"images": [A, B], "norm_tag": 3}, "norm_tag: int, expected text"),
        ({"images": [A, B], "n_action_steps": "all"}, "n_action_steps: 'all', expected a whole number"),
        ({"images": [A, B], "seed": True}, "seed: 'True', expected a whole number"),
        ({"images": [A, B], "n_obs_steps": 2}, "n_obs_steps: 2, expected 1"),
        ({"images": [A, B], "session_id": "x" * 201}, "session_id: expected text"),
        ({"images": [A, B], "session_id": [1]}, "session_id: expected text"),
    ],
)
def test_what_is_missing_or_of_the_wrong_kind_is_refused_by_field(body, message):
    if message is None:  # one picture for two cameras is counted where all pictures are, not here
        assert levels(read(body)) == [1]
        return
    with pytest.raises(ValueError, match=message):
        read(body)


@pytest.mark.parametrize("body", [None, 3, "act", [A], b"act"])
def test_a_body_without_fields_is_refused(body):
    with pytest.raises(fields.FieldError, match=r"body: .*expected fields by name"):
        fields.request(body, TWO)


def test_a_sender_without_arrays_gets_lists_back():
    assert fields.plain({"a": [1, {"b": "c"}]})
    assert not fields.plain({"a": [1, {"b": A}]})
