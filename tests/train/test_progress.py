import pytest

from molmoact2_jax.train import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.4, "12s"), (450, "7m30s"), (7500, "2h05m"), (3600 * 76, "3d4h"), (59.6, "1m00s"), (0, "0s")],
)
def test_durations_show_their_two_largest_units(seconds, text):
    assert progress.duration(seconds) == text


def test_the_time_left_follows_the_recent_rate():
    now = [0.0]
    told = progress.Progress(1000, clock=lambda: now[0])
    told.start(100)
    assert told.line(100, {"loss": 2.0}) == "100/1000 10% loss 2"
    now[0] = 30.0
    assert told.line(110, {"loss": 1.23456}) == "110/1000 11% loss 1.235 | 3 s/step, 44m30s left"
    for step in range(120, 320, 10):  # the slow start leaves the window
        now[0] += 2.0
        line = told.line(step, {})
    assert line == "310/1000 31%  | 5 steps/s, 2m18s left"


def test_a_pause_does_not_count():
    now = [0.0]
    told = progress.Progress(20, clock=lambda: now[0])
    told.start(0)
    now[0] = 10.0
    told.line(10, {})
    now[0] = 1000.0  # an evaluation
    told.start(10)
    now[0] = 1005.0
    assert "1 steps/s, 5s left" in told.line(15, {})
