import re

import pytest


@pytest.fixture(scope="module")
def executed(execute):
    return execute("05_think")


def test_the_codec_beats_the_mean_of_each_cell_with_most_of_its_codes(executed):
    shown = executed.text
    used = int(re.search(r"(\d+)% of the codes used", shown)[1])
    error, pooled = map(float, re.search(r"squared error ([\d.]+), of the mean of each cell ([\d.]+)", shown).groups())
    assert used >= 80
    assert error < pooled


def test_the_episode_compiles_once_and_its_codes_are_the_released_ones(executed):
    shown = executed.text
    assert "call 0: 100 cells changed" in shown and "compiled after the first call: 0" in shown
    calls = re.findall(r"call \d: +(\d+) cells changed, +(\d+) passes", shown)
    assert len(calls) == 5 and all(0 < int(changed) < 30 for changed, _ in calls[1:])
    recorded = re.findall(r"frame\d: +(\d+) cells, +(\d+) passes instead of +(\d+), codes equal: True", shown)
    assert len(recorded) == 3
    assert all(int(passes) <= min(int(changed) + 1, int(forwards)) for changed, passes, forwards in recorded)


def test_all_ways_of_decoding_are_timed_and_an_ended_episode_refuses_calls(executed):
    shown = executed.text
    passes = dict(re.findall(r"^(full|adaptive, [a-z ]+?) +(\d+) passes", shown, re.MULTILINE))
    assert passes["full"] == "102" and passes["adaptive, none changed"] == "1"
    assert "episode: has ended" in shown


def test_the_drawings_are_pictures(executed):
    assert executed.pictures == 3
