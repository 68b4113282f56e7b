import json
import math

import pytest

from molmoact2_jax.cli import main
from molmoact2_jax.eval import agreement


def row(name, error, tolerance=1e-5):
    return agreement.Agreement(name, {"cpu": error}, {"cpu": tolerance})


@pytest.fixture
def check(golden, monkeypatch, tmp_path):
    def run(rows, *flags):
        monkeypatch.setattr(agreement, "compare", lambda checkpoint, archive, devices, cases: rows)
        path = tmp_path / "out" / "check.json"
        status = main.main(["bench", "check", str(golden / "tiny"), "--json", str(path), *flags])
        return status, json.loads(path.read_text())

    return run


def test_arrays_inside_their_tolerance_succeed_and_the_worst_are_shown(check, capsys):
    status, (found,) = check([row(f"array{i}", i * 1e-6) for i in range(9)])
    out = capsys.readouterr().out
    assert status == 0 and len(found["arrays"]) == 9 and found["archive"] == "tiny"
    assert "array8" in out and "array1" not in out and "9 arrays compared, 0 outside" in out
    check([row(f"array{i}", i * 1e-6) for i in range(9)], "--all")
    assert "array1" in capsys.readouterr().out


def test_a_miss_fails_is_shown_and_is_written_without_infinity(check, capsys):
    status, (found,) = check([row("fine", 0.0), row("ids", math.inf, 0.0)])
    assert status == 1
    assert [array["passed"] for array in found["arrays"]] == [True, False] and found["arrays"][1]["errors"][
        "cpu"
    ] is None
    assert "MISS" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("ids"))


def test_a_missing_archive_is_bad_input(tmp_path, capsys):
    assert main.main(["bench", "check", str(tmp_path)]) == 2
    assert "golden.npz: no such file" in capsys.readouterr().err
