import pytest


@pytest.fixture(scope="module")
def executed(execute):
    return execute("02_data")


def test_the_notebook_runs_and_shows_what_it_says(executed):
    shown = executed.text
    assert "12 episodes, 360 frames" in shown
    assert "intact: True" in shown
    assert "as recorded -> nothing to remark" in shown
    assert "look like degrees, where the tag has radians" in shown
    assert "not finite" in shown and "observation.images.wrist" in shown and "errors left: 0" in shown
    assert "The task is to open the box" in shown or "The task is to put the ball into the box" in shown
    assert "a new loader goes on with the same batch" in shown
