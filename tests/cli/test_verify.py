import json

import pytest

from molmoact2_jax.cli import main
from molmoact2_jax.eval import parity
from molmoact2_jax.eval.golden import Row

ROWS = [Row("case0/in/input_ids", 0.0, 0.0), Row("case0/trajectory", 3e-7, 1e-5, "a note")]


@pytest.fixture
def verify(golden, monkeypatch):
    """Runs the command on rows made up for it; `parity` itself is tested with the archives."""

    def run(rows, *flags):
        monkeypatch.setattr(parity, "rows", lambda oracle: iter(rows))
        return main.main(["verify", str(golden / "tiny"), str(golden / "tiny" / "golden.npz"), *flags])

    return run


def test_arrays_inside_their_tolerance_succeed_and_the_others_are_not_yet_compared(verify, capsys):
    assert verify(ROWS) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["case0/in/input_ids", "0.0e+00", "equal", "ok"]
    assert out[2].split() == ["case0/trajectory", "3.0e-07", "1.0e-05", "ok", "a", "note"]
    assert any(line.split() == ["train/ki/lm_loss", "not", "yet"] for line in out)
    assert out[-1].startswith("2 arrays compared, 0 outside their tolerance")


def test_any_miss_fails_and_is_named_last(verify, capsys):
    assert verify([*ROWS, Row("case0/last_logits", 2e-5, 1e-5)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[3].split()[3] == "MISS"
    assert out[-1] == "MISS case0/last_logits"


def test_json_has_the_rows_and_what_waits(verify, capsys):
    assert verify([*ROWS, Row("case0/last_logits", float("inf"), 1e-5, "shape")], "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert [row["passed"] for row in found["rows"]] == [True, True, False]
    assert found["rows"][2]["error"] is None
    assert "train/noki/flow_loss" in found["not_yet"]


def test_a_missing_archive_is_bad_input(golden, tmp_path, capsys):
    assert main.main(["verify", str(golden / "tiny"), str(tmp_path / "golden.npz")]) == 2
    assert "golden.npz: no such file" in capsys.readouterr().err
