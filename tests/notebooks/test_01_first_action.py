import pytest


@pytest.fixture(scope="module")
def executed(execute):
    return execute("01_first_action")


def test_the_notebook_runs_and_shows_what_it_says(executed):
    shown = executed.text
    assert "actions: float32 (10, 7) = steps, channels" in shown
    assert "largest difference from the released implementation" in shown
    assert "programs compiled by these calls: 0" in shown
    assert "the same tokens as the released implementation's" in shown
    assert shown.count("refused: ") == 4 and "franka" in shown


def test_the_pictures_and_the_chunks_are_drawn(executed):
    assert executed.pictures == 4
