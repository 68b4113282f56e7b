import formats
import pytest

from molmoact2_jax.data import instructions


@pytest.fixture
def directory(tmp_path):
    return formats.write(formats.V21, tmp_path / "data", formats.smooth())


def test_annotations_that_were_written_are_those_that_are_read(directory):
    instructions.write(directory, {0: "Hebe die Tasse", 2: "push it"})
    instructions.write(directory, {0: "Hebe die Tasse an", 2: "push it"})
    source = formats.open_source(formats.V21, directory)
    assert [source.annotation(e) for e in range(4)] == ["Hebe die Tasse an", None, "push it", None]


def test_an_episode_that_is_not_there_is_refused(directory):
    with pytest.raises(ValueError, match=r"no episodes \[7\]"):
        instructions.write(directory, {7: "push it"})


@pytest.mark.parametrize(
    "second", ["{", '{"episode_index": 0, "task": "b"}', '{"episode_index": 1, "task": " "}', "[]"]
)
def test_lines_of_another_form_are_refused_by_number(tmp_path, second):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"episode_index": 0, "task": "a"}\n' + second + "\n")
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2"):
        instructions.parse(path)
