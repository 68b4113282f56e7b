import numpy as np
import pytest

from molmoact2_jax.text import pointing
from molmoact2_jax.text.pointing import Mark

PHOTO = [(1000, 1000)]


def test_points_run_from_left_to_right():
    marks = [Mark(1, 640, 118), Mark(1, 512, 330), Mark(1, 512, 7)]
    text = '<points coords="1 1 512 007 2 512 330 3 640 118">mugs</points>'
    assert pointing.points("mugs", marks, PHOTO) == text


def test_numbers_run_on_through_pictures_of_their_own_size():
    marks = [Mark(2, 60, 200), Mark(1, 10, 20)]
    text = '<points coords="1 1 100 200;2 2 300 400">a</points>'
    assert pointing.points("a", marks, [(100, 100), (200, 500)]) == text


def test_frames_are_named_by_their_time():
    marks = [Mark(0.5, 51.5, 33.1), Mark(0, 51.2, 33)]
    text = '<points coords="0.0 1 512 330;0.5 2 515 331">mug</points>'
    assert pointing.video_points("mug", marks, (100, 100)) == text


def test_tracked_objects_keep_their_numbers():
    marks = [Mark(0.5, 510, 498, 1), Mark(0, 20, 30, 2), Mark(0, 500, 500, 1), Mark(0.5, 9, 9, 2)]
    text = '<tracks alt="a cup" coords="0.0 1 500 500 2 020 030;0.5 1 510 498 2 009 009">cup</tracks>'
    assert pointing.tracks("cup", marks, PHOTO[0], alt="a cup") == text


def test_objects_are_numbered_as_they_appear_from_left_to_right():
    marks = [Mark(0.5, 700, 1, 40), Mark(0.0, 500, 9, 7), Mark(0.0, 20, 30, 12), Mark(0.5, 10, 30, 7)]
    assert [mark.number for mark in pointing.by_appearance(marks, PHOTO[0])] == [3, 2, 1, 2]
    assert pointing.by_appearance([], PHOTO[0]) == []


def test_coordinates_round_half_to_even_and_stay_in_the_picture():
    marks = [Mark(1, 0.5, 1.5), Mark(1, -4, 2000)]
    assert pointing.points("x", marks, PHOTO) == '<points coords="1 1 000 002 2 000 1000">x</points>'


def test_boxes_run_from_the_top_down():
    corners = np.array([[50, 40, 90, 100.4], [-5, 10, 30, 20], [2, 10, 8, 30]])
    text = '<boxes coords="1 1 000 100 300 200 2 020 100 080 300 3 500 400 900 1000">door</boxes>'
    assert pointing.boxes("door", corners, (100, 100)) == text


def test_nothing_to_point_at_is_said_in_words():
    assert pointing.points("x", [], PHOTO) == pointing.boxes("x", np.zeros((0, 4)), (1, 1)) == "There are none."
    assert pointing.tracks("x", [], (1, 1)) == pointing.answer("count", "x", 0) == "There are none."


def test_every_mode_of_answering():
    tag = '<points coords="1 1 001 002">cups</points>'
    answers = {mode: pointing.answer(mode, tag, 4) for mode in pointing.ANSWERS}
    assert answers == {
        "point": tag,
        "point_then_count": f"Counting the {tag} shows a total of 4.",
        "count_then_point": f"There are 4 {tag}.",
        "count": "4",
    }
    with pytest.raises(ValueError, match="mode: 'guess'"):
        pointing.answer("guess", tag, 4)


@pytest.mark.parametrize("seed", range(5))
def test_parsing_gives_back_points_to_half_a_thousandth(seed):
    rng = np.random.default_rng(seed)
    sizes = [(640, 480), (100, 3000), (37, 51)]
    marks = [Mark(int(p), *(rng.uniform(0, 1, 2) * sizes[p - 1])) for p in rng.integers(1, 4, 12)]
    text = f"Counting the {pointing.points('cups', marks, sizes)} shows a total of 12."
    found = pointing.parse(text, sizes)
    assert [m.number for m in found] == list(range(1, 13))
    order = sorted(marks, key=lambda m: (m.place, round(1000 * m.x / sizes[m.place - 1][0]), m.y))
    for mark, back in zip(order, found):
        size = np.array(sizes[mark.place - 1])
        assert back.place == mark.place
        assert (np.abs([back.x - mark.x, back.y - mark.y]) <= size / 2000 + 1e-9).all()


def test_parsing_gives_back_tracks_and_their_objects():
    marks = [Mark(0.0, 500, 500, 3), Mark(0.5, 510, 498, 3), Mark(0.5, 20, 40, 7)]
    assert pointing.parse(pointing.tracks("cup", marks, PHOTO[0], alt="it moves"), PHOTO) == marks


def test_parsing_gives_back_boxes():
    corners = np.array([[16.0, 24, 320, 240], [0, 48, 640, 480]])
    text = f"They are here: {pointing.boxes('door', corners, (640, 480))}"
    np.testing.assert_allclose(pointing.parse_boxes(text, (640, 480)), corners, atol=0.33)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There are none.",
        '<points coords="">x</points>',
        '<points coords="1 1 12 34">x</points>',
        '<points coords="1 1 1001 500">x</points>',
        '<points coords="1.2.3 1 500 500">x</points>',
        '<points coords="9 1 500 500">x</points>',
        '<points coords="1 1 500',
        '<boxes coords="1 1 100 200 300 1400">x</boxes>',
    ],
)
def test_what_is_outside_or_malformed_is_left_out(text):
    assert pointing.parse(text, [(10, 10), (10, 10)]) == []
    assert pointing.parse_boxes(text, (10, 10)).shape == (0, 4)


def test_several_tags_and_closed_ones_are_read():
    text = 'a <points coords="1 1 100 200"/> and <points alt="b" coords="1 1 300 400">b</points>'
    assert [(m.x, m.y) for m in pointing.parse(text, [(10, 10)])] == [(1, 2), (3, 4)]


def test_a_mark_in_a_picture_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="picture 3, expected 1 to 2"):
        pointing.points("x", [Mark(3, 1, 1)], [(10, 10), (10, 10)])
