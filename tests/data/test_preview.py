import dataclasses
import html

import damages
import formats
import numpy as np
import pytest

from molmoact2_jax.data import norm_stats, pictures, preview, stats

FACTS = norm_stats.Tag(horizon=4, setup="an arm", control="absolute joint pose", normalize_gripper=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = formats.write(formats.RLDS, tmp_path_factory.mktemp("preview") / "data", formats.smooth())
    return formats.open_source(formats.RLDS, directory)


@pytest.fixture(scope="module")
def tag(source):
    return stats.measure_sources([source], FACTS)


def test_the_sheet_has_a_strip_per_camera_and_shows_its_pictures(source):
    sheet = preview.contact_sheet(source, [0, 2], moments=3)
    width = round(64 * preview.TILE / 48)
    assert sheet.shape == (2 * 2 * (preview.TILE + 20 + 4), 3 * width, 3)
    last = sheet[20 : 20 + preview.TILE, 2 * width : 3 * width]
    picture = source.frames(0, [6], ["image"])["image"][0]
    assert abs(last[:80].mean(axis=(0, 1)) - picture[:24].mean(axis=(0, 1))).max() < 3


def test_a_picture_that_cannot_be_decoded_is_a_red_tile(tmp_path):
    directory = formats.write(formats.V21, tmp_path / "data", formats.smooth())
    damages.remove_camera(formats.V21, directory)
    sheet = preview.contact_sheet(formats.open_source(formats.V21, directory), [1], moments=2)
    np.testing.assert_array_equal(sheet[60, 80], (200, 40, 40))


def test_the_histograms_mark_the_bounds_of_the_tag(source, tag, tmp_path):
    numbers = stats.read(source)
    preview.histograms(numbers, tag, tmp_path / "with.png")
    plain = dataclasses.replace(tag, action=None, state=None)
    preview.histograms(numbers, plain, tmp_path / "without.png")
    with_bounds, without = (pictures.decode((tmp_path / f"{n}.png").read_bytes()) for n in ("with", "without"))
    red = [((p[..., 0] > 180) & (p[..., 1] < 80)).sum() for p in (with_bounds, without)]
    assert red[0] > 500 and red[1] == 0


def test_the_page_quotes_prompts_and_escapes_what_the_dataset_says(source, tag, tmp_path):
    source.name = "<own>"
    page = preview.write(source, tmp_path / "page", tag, episodes=2).read_text("utf-8")
    source.name = "own"
    assert "&lt;own&gt;" in page and "<own>" not in page
    assert "The task is to pick up the cup. The setup is" in html.unescape(page)
    assert page.count("<h3>") == 2 and html.unescape(page).count("<state_start>") == 2
    assert {p.name for p in (tmp_path / "page").iterdir()} == {"cameras.png", "histograms.png", "index.html"}


def test_a_moment_that_cannot_be_used_says_why(tag, tmp_path):
    made = formats.smooth()
    made[0].state[3] = np.nan
    broken = formats.open_source(formats.RLDS, formats.write(formats.RLDS, tmp_path / "data", made))
    (moment,) = preview.moments(broken, [0], tag, "q01_q99")
    assert "state channel 0 is nan" in moment.text and not len(moment.chunk)
