import json

import numpy as np
import pytest
from PIL import Image

from molmoact2_jax.checkpoint import flat
from molmoact2_jax.cli import main, predict
from molmoact2_jax.models import depth_vq

TASK = "Pick up the red bowl and place it on the plate."


@pytest.fixture(scope="module")
def words(golden, tmp_path_factory):
    """The command line that repeats case 0 of the archive, and the archive."""
    directory, arrays = tmp_path_factory.mktemp("case0"), np.load(golden / "tiny" / "golden.npz")
    command = ["predict", str(golden / "tiny"), "--task", TASK, "--norm-tag", "libero", "--dtype", "float32"]
    for camera in range(2):
        path = directory / f"{camera}.png"
        Image.fromarray(arrays[f"case0/image{camera}"]).save(path)
        command += ["--image", str(path)]
    np.save(directory / "state.npy", arrays["case0/state"])
    return [*command, "--state", str(directory / "state.npy")], arrays


def shown(capsys, *words) -> dict:
    assert main.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_discrete_actions_are_those_of_the_released_implementation(words, capsys):
    command, arrays = words
    out = shown(capsys, *command, "--mode", "discrete")
    np.testing.assert_allclose(out["actions"], arrays["case0/actions_discrete"][0], atol=1e-5)
    assert out["token_ids"] == arrays["case0/tokens_discrete"][0].tolist()


def test_the_seed_decides_the_chunk_and_numbers_mean_the_same_as_a_file(words, capsys):
    command, arrays = words
    numbers = ",".join(str(float(x)) for x in arrays["case0/state"])
    first = shown(capsys, *command)["actions"]
    assert np.shape(first) == (10, 7)
    assert shown(capsys, *command[:-2], f"--state={numbers}")["actions"] == first
    assert shown(capsys, *command, "--seed", "1")["actions"] != first


def test_the_table_has_a_row_per_step_and_the_plot_is_a_picture(words, capsys, tmp_path):
    command, _ = words
    assert main.main([*command, "--plot", str(tmp_path / "chunk.png")]) == 0
    head, *rows, summary = capsys.readouterr().out.splitlines()
    assert len(head.split()) == 1 + 7
    assert [row.split()[0] for row in rows] == [str(step) for step in range(10)]
    assert summary.startswith("10 steps of 7 channels")
    assert Image.open(tmp_path / "chunk.png").size[0] > 100


@pytest.fixture(scope="module")
def thinking(golden, tmp_path_factory):
    """The command line that repeats frames 0 to 2 of case 0 of the Think archive, and the archive."""
    directory, arrays = tmp_path_factory.mktemp("think"), np.load(golden / "tiny_think_random" / "golden.npz")
    shots = {"0": "case0/image0", "1": "case0/frame1/image0", "2": "case0/frame2/image0", "wrist": "case0/image1"}
    for name, key in shots.items():
        Image.fromarray(arrays[key]).save(directory / f"{name}.png")
    np.save(directory / "state.npy", arrays["case0/state"])
    command = ["predict", golden / "tiny_think_random", "--task", TASK, "--norm-tag", "libero", "--dtype", "float32"]
    given = [("previous", "0.png"), ("previous", "1.png"), ("image", "2.png"), ("image", "wrist.png")]
    for name, file in [*given, ("state", "state.npy")]:
        command += [f"--{name}", directory / file]
    return [*map(str, command), "--depth", "adaptive"], arrays


def test_depth_after_previous_pictures_is_that_of_the_released_implementation(thinking, capsys):
    command, arrays = thinking
    out = shown(capsys, *command)
    assert out["depth_codes"] == arrays["case0/frame2/depth_bins"].ravel().tolist()
    assert out["changed"] == arrays["case0/frame2/update_mask"].sum()
    assert 1 < out["passes"] <= out["changed"] + 1


def test_the_plot_of_adaptive_depth_shows_cameras_changed_cells_codes_and_the_chunk(thinking, tmp_path, monkeypatch):
    command, arrays = thinking
    cfg, file = depth_vq.DepthVQConfig(width=2, code_dim=8), tmp_path / "codec.safetensors"
    rng = np.random.default_rng(0)
    flat.save({k: rng.normal(size=v).astype(np.float32) for k, v in depth_vq.shapes(cfg).items()}, file)
    drawn = []
    monkeypatch.setattr(predict, "_plot", lambda *args, plot=predict._plot: drawn.append(plot(*args)) or drawn[0])
    chosen = ["--plot", str(tmp_path / "call.png"), "--codec", str(file)]
    assert main.main([*command, *chosen]) == 0
    sheet, chunk = drawn[0].subfigs
    assert [axes.get_title() for axes in sheet.axes[:5]] == ["picture", "camera 2", "changed cells", "codes", "decoded"]
    assert [len(axes.images) for axes in sheet.axes] == [1] * 15
    words = [text.get_text() for text in sheet.axes[13].texts]
    assert words == [str(code) for code in arrays["case0/frame2/depth_bins"].ravel()]
    cells = arrays["case0/frame2/update_mask"].sum()
    assert sheet.axes[10].get_ylabel().startswith(f"call 3: {cells} cells, ")
    assert sheet.axes[12].get_xlabel() == f"{cells} of 100"
    assert len([axes for axes in chunk.axes if axes.axison]) == 7
    with Image.open(tmp_path / "call.png") as picture:
        assert picture.width > 1000 and picture.height > 800


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--depth", "full"], "--previous: with --depth full, expected adaptive"),
        (["--codec", "vq.safetensors"], "--codec: without depth or a plot"),
        (["--codec", "vq.safetensors", "--plot", "x.png"], "vq.safetensors"),
        (["--previous", "missing.png"], "missing.png"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_about_depth_is_one_line(thinking, capsys, changed, said):
    assert main.main([*thinking[0], *changed]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--state", "1", "2"], "state: float32[2], expected float32[8]"),
        (["--state", "1", "two"], "--state: could not convert string to float: 'two'"),
        (["--state", "missing.npy"], "missing.npy"),
        (["--norm-tag", "liber"], "'libero'"),
        (["--depth", "full"], "does not reason about depth"),
        (["--image", "missing.png"], "missing.png"),
        (["--num-steps", "0"], "num_steps: 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_that_names_the_field(words, capsys, changed, said):
    assert main.main([*words[0], *changed]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_a_directory_that_is_no_checkpoint_is_refused_in_one_line(words, capsys, tmp_path):
    assert main.main(["predict", str(tmp_path), *words[0][2:]]) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["1", "-2.5", "3"], ["1,-2.5,3"], ["1, -2.5", "3"], ["1 -2.5 3e0"]])
def test_a_state_may_be_written_apart_or_with_commas(given):
    np.testing.assert_array_equal(predict.read_state(given), np.array([1, -2.5, 3], np.float32))
