import sys

import numpy as np
import pytest
from PIL import Image

from molmoact2_jax.eval import pictures

RNG = np.random.default_rng(0)


def frame(**changes):
    values = dict(
        title="frame 3",
        picture=RNG.integers(0, 256, (48, 64, 3), np.uint8),
        codes=np.arange(100),
        mask=np.arange(100) % 4 == 0,
        depth=RNG.random((48, 64)),
        decoded=RNG.random((320, 320)),
    )
    return pictures.DepthFrame(**values | changes)


def test_a_figure_becomes_a_png_in_a_new_directory(tmp_path):
    path = pictures.save(pictures.depth_frames([frame(), frame()]), tmp_path / "a" / "sheet.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_a_depth_sheet_has_a_row_per_frame_and_a_panel_per_quantity():
    figure = pictures.depth_frames([frame(), frame(depth=None)])
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles == ["picture", "changed cells", "depth", "codes", "decoded"]
    assert len(figure.axes) == 10 and len(figure.axes[7].images) == 0  # the second row has no depth
    assert len(pictures.depth_frames([frame(mask=None, depth=None, decoded=None)]).axes) == 2


def test_codes_are_drawn_where_they_are_and_shaded_by_how_near_they_are():
    levels = np.linspace(-1, 1, 128)[::-1]
    axes = pictures.depth_frames([frame(mask=None, depth=None, decoded=None)], levels).axes[1]
    np.testing.assert_allclose(axes.images[0].get_array(), levels[np.arange(100)].reshape(10, 10))
    words = {text.get_position(): text.get_text() for text in axes.texts}
    assert words[(3, 0)] == "3" and words[(0, 9)] == "90" and len(words) == 100


def test_only_changed_cells_keep_their_colours():
    shown = frame(picture=np.full((320, 320, 3), 200, np.uint8))
    axes = pictures.depth_frames([shown]).axes[1]
    cells = np.asarray(axes.images[0].get_array())[::32, ::32, 0].ravel()
    np.testing.assert_array_equal(cells == 200, shown.mask)
    assert axes.get_xlabel() == "25 of 100"


def test_codes_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"codes of 'frame 3' is \(64,\), expected \(100,\)"):
        pictures.depth_frames([frame(codes=np.zeros(64, int))])
    with pytest.raises(ValueError, match="no frames"):
        pictures.depth_frames([])


def test_actions_are_drawn_against_what_was_recorded():
    samples, truth = RNG.normal(size=(3, 5, 6)), RNG.normal(size=(4, 6))
    figure = pictures.actions(samples, truth, [f"j{i}" for i in range(6)], "lift")
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [f"j{i}" for i in range(6)]
    lines = {line.get_label(): line.get_ydata() for line in panels[2].lines}
    np.testing.assert_allclose(lines["recorded"], truth[:, 2])
    np.testing.assert_allclose(lines["predicted"], samples.mean(axis=0)[:, 2])
    assert len(panels[2].lines) == 5
    assert len(pictures.actions(samples[0]).axes[0].lines) == 1


def test_strips_have_a_row_per_camera():
    shots = [RNG.integers(0, 256, (8, 9, 3), np.uint8) for _ in range(3)]
    figure = pictures.strips({"observation.images.top": shots, "wrist": shots[:2]}, ["0 s", "1 s", "2 s"])
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["top", "wrist"]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 1, 1, 0]
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), shots[1])


def test_curves_choose_their_scale_and_skip_what_is_not_finite():
    history = {"loss": ([0, 1, 2], [8.0, 2.0, 1.0]), "reward": ([0, 1, 2], [-1.0, np.nan, 3.0])}
    loss, reward = (axes for axes in pictures.curves(history).axes if axes.axison)
    assert (loss.get_yscale(), reward.get_yscale()) == ("log", "linear")
    smooth = pictures.curves(history, smoothing=0.5).axes[1].lines[1].get_ydata()
    np.testing.assert_allclose(smooth, [-1.0, np.nan, (3.0 * 0.5 - 1.0 * 0.25) / 0.75])


def test_the_module_is_imported_without_matplotlib(monkeypatch):
    import importlib

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    module = importlib.reload(pictures)
    with pytest.raises(ModuleNotFoundError):
        module.curves({"loss": ([0], [1.0])})
