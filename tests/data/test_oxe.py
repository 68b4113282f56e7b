import numpy as np
import pytest

from molmoact2_jax.data import oxe, pictures, rlds, rlds_write

RELEASED = {  # tag: (horizon, cameras, normalised gripper), from the table of released statistics
    "yam_dual_molmoact2": (30, 3, False),
    "so100_so101_molmoact2": (30, 0, True),
    "franka_droid": (15, 3, False),
    "franka_molmoact": (10, 2, False),
    "google_robot_bc_z": (10, 1, False),
    "google_robot_fractal": (3, 1, False),
    "widowx_bridge": (5, 4, False),
    "libero": (10, 2, False),
}
WIDTHS = {"bridge": (7, 7), "fractal": (8, 7), "bc_z": (7, 7), "droid": (8, 8), "molmoact": (7, 7), "libero": (8, 7)}


def test_tags_are_the_released_ones():
    assert {t.name: (t.horizon, len(t.cameras), t.normalize_gripper) for t in oxe.TAGS.values()} == RELEASED
    assert oxe.TAGS["franka_molmoact"].action_key == "action.del_ee_action"


@pytest.mark.parametrize("name", WIDTHS)
def test_rows_have_the_channels_of_their_tag(name):
    row = oxe.ROWS[name]
    assert row.tag in oxe.TAGS
    assert tuple(sum(len(f.names) for f in fields) for fields in (row.state, row.action)) == WIDTHS[name]
    assert [camera.name for camera in row.cameras] == [key.rpartition(".")[2] for key in oxe.TAGS[row.tag].cameras]
    assert row.fps == oxe.TAGS[row.tag].horizon  # a chunk is one second
    assert all(field.unit for field in (*row.state, *row.action)) and row.gripper


def features_of(row):
    """TFDS features that have what a row names, and wider vectors than it reads."""
    import tensorflow_datasets as tfds

    tree = {}
    for field in (*row.state, *row.action):
        width = max(tree.get(field.key, 0), field.start + len(field.names) + (2 if "residual" in field.key else 0))
        tree[field.key] = width
    leaves = {key: tfds.features.Tensor(shape=(width,), dtype=np.float32) for key, width in tree.items()}
    leaves |= {key: tfds.features.Text() for key in row.language}
    leaves |= {c.key: tfds.features.Image(shape=(None, None, 3), encoding_format="png") for c in row.cameras}
    leaves |= {c.present: tfds.features.Scalar(np.bool_) for c in row.cameras if c.present}
    return leaves


def nest(flat, within=("present", "future")):
    """Makes nested dictionaries of path names; BC-Z has names with a slash in them, which stay."""
    out = {}
    for key, value in flat.items():
        *parents, last = key.split("/")
        if parents and parents[-1] in within:
            last = f"{parents.pop()}/{last}"
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return out


def value(key, feature, t, rng):
    """A random vector, a text that names its place, or a picture as bright as its step."""
    kind = type(feature).__name__
    if kind == "Text":
        return f"{key} {t}"
    return (
        pictures.encode_png(np.full((8, 8, 3), t, np.uint8))
        if kind == "Image"
        else rng.random(feature.shape, np.float32)
    )


@pytest.mark.parametrize("name", oxe.ROWS)
def test_every_row_reads_a_dataset_of_its_features(tmp_path, name):
    import tensorflow_datasets as tfds

    row, rng, length = oxe.ROWS[name], np.random.default_rng(0), 6
    leaves = features_of(row)
    tree = nest(leaves)
    chosen = {key: feature for key, feature in leaves.items() if key.startswith("steps/")}
    steps = [
        nest({key.removeprefix("steps/"): value(key, f, t, rng) for key, f in chosen.items()}) for t in range(length)
    ]
    metadata = {key: True for key in leaves if not key.startswith("steps/")}
    features = tfds.features.FeaturesDict(tree | {"steps": tfds.features.Dataset(tree["steps"])})
    with rlds_write.Writer(tmp_path / name, name, features) as writer:
        writer.add(steps, nest(metadata))
    source = rlds.RLDSSource(tmp_path / name, row)
    kept = length - row.drop_first - row.drop_last
    assert source.column("state", 0).shape == (kept, len(source.state_names))
    assert source.column("action", 0).shape == (kept, len(source.action_names))
    assert source.tasks(0, 0) == tuple(f"{key} {row.drop_first}" for key in row.language)
    for view in source.frames(0, [1], source.cameras).values():
        assert (view == row.drop_first + 1).all()
    assert np.isfinite(source.chunk(0, 0, oxe.TAGS["libero"].horizon).actions).all()


def test_bridge_actions_are_the_motion_between_poses():
    row = oxe.ROWS["bridge"]
    rng = np.random.default_rng(0)
    state, action = rng.random((6, 7), np.float32), rng.random((6, 7), np.float32)
    state[3, 5], state[4, 5] = 3.1, -3.1  # yaw turns past pi
    moved = row.action[0].read(state)
    np.testing.assert_allclose(moved[0], state[1, :6] - state[0, :6], atol=1e-6)
    np.testing.assert_allclose(moved[3, 5], 2 * np.pi - 6.2, atol=1e-5)
    assert set(np.unique(row.action[1].read(action))) <= {0, 1}


def test_a_gripper_becomes_binary_by_the_state_it_reaches():
    values = np.array([1, 0.6, 0.3, 0, 0.5, 1, 0.9, 0.2], np.float32)[:, None]
    assert oxe.binary(values)[:, 0].tolist() == [1, 0, 0, 0, 1, 1, 0, 0]


def test_relative_gripper_commands_become_states():
    commands = np.array([0, 1, 0, -1, 0.05, 1], np.float32)[:, None]
    assert oxe.opened_from_motion(commands)[:, 0].tolist() == [1, 0, 0, 1, 1, 0]
    assert oxe.opened_from_motion(-commands)[:, 0].tolist() == [0, 1, 1, 0, 0, 1]
    assert oxe.opened_from_motion(commands * 0)[:, 0].tolist() == [1] * 6


def test_closing_becomes_opening():
    assert oxe.opened(np.array([[0.0], [0.25], [1.0]]))[:, 0].tolist() == [1, 0.75, 0]


def test_a_feature_that_is_too_narrow_is_refused():
    with pytest.raises(ValueError, match="steps/action: 6 channels, expected 7"):
        oxe.ROWS["libero"].action[0].read(np.zeros((4, 6)))
