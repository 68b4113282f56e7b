import fixtures
import pytest

from molmoact2_jax.data import catalog, lerobot, oxe, rlds, table

MADE = fixtures.episodes(lengths=(3, 2))


def test_formats_are_recognised(tmp_path):
    first = catalog.open_source(fixtures.rlds(tmp_path / "a", MADE), fixtures.ROW)
    second = catalog.open_source(fixtures.lerobot(tmp_path / "b", MADE), fixtures.TAG, table.Options(name="b@home"))
    assert isinstance(first, rlds.RLDSSource) and isinstance(second, lerobot.LeRobotSource)
    assert (first.name, second.name) == ("own", "b@home")
    with pytest.raises(ValueError, match=r"no dataset, expected meta/info.json"):
        catalog.open_source(tmp_path / "nothing")


def test_a_meaning_of_the_wrong_kind_is_refused(tmp_path):
    for maker in (fixtures.rlds, fixtures.lerobot):
        root = maker(tmp_path / maker.__name__, MADE)
        for wrong in (None, "nothing", oxe.TAGS["libero"] if maker is fixtures.rlds else oxe.ROWS["libero"]):
            with pytest.raises(ValueError, match=r"expected an oxe\.(Row|Tag) or one of"):
                catalog.open_source(root, wrong)


def test_depth_companions_are_refused_where_they_would_be_ignored(tmp_path):
    with pytest.raises(ValueError, match="LeRobot datasets alone take them"):
        catalog.open_source(fixtures.rlds(tmp_path, MADE), fixtures.ROW, depth={"image": tmp_path})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("a/b", ("a/b", None)), ("a@3", ("a", (3,))), ("a@x/b@0-2,5, 1", ("a@x/b", (0, 1, 2, 5)))],
)
def test_selections_are_parsed(spec, expected):
    assert catalog.parse(spec) == expected


@pytest.mark.parametrize("spec", ["a@", "a@x", "a@3-1", "a@1,,2", "a@-1"])
def test_other_selections_are_refused(spec):
    with pytest.raises(ValueError, match="expected numbers and ranges"):
        catalog.parse(spec)
