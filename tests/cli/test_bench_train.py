import json

import pytest

from molmoact2_jax.cli import bench_train as command
from molmoact2_jax.cli import main
from molmoact2_jax.eval import bench_train, machine

COMPILED = {"arguments": 10**9, "temporaries": 10**9, "total": 2 * 10**9, "seconds": 12.3}
TIMES = {"min": 90.0, "p50": 100.0, "p95": 110.0, "p99": 120.0, "mean": 101.0, "samples": 3}


@pytest.fixture
def runs(monkeypatch):
    """Stands in for the measurement, which is tested by itself; notes what it was asked for."""
    asked = []

    def sweep(run, trials, iterations, warmup, *, progress):
        asked.append((run, trials, iterations, warmup))
        for trial in trials:
            progress(trial)(1, 2)
            about = {
                "machine": machine.describe(), "trial": trial._asdict(), "compiled": COMPILED,
                "model": {"sizes": run.model.sizes, "parameters": 5e9, "trained": 5e9, "dtype": run.dtype},
                "row": {"tokens": run.data.tokens, "crops": 8, "chunks": 5, "samples": 8, "horizon": 30},
                "planned": {"total": 3 * 10**9},
            }  # fmt: skip
            if trial.rows > 1:
                yield about | {"not": "needs 200.0 GB, the device has 141.0"}
            else:
                rates = {"tokens_per_second_per_device": 21000.0, "model_tflops_per_device": 400.0, "mfu": 0.404}
                yield about | {"step": TIMES, **rates, "loss": 9.0, "peak_bytes": 90 * 10**9}

    monkeypatch.setattr(bench_train, "sweep", sweep)
    return asked


def test_every_trial_is_a_line_and_all_are_written(runs, capsys, tmp_path):
    path = tmp_path / "out" / "steps.json"
    words = ["--rows", "1,2", "--remat", "full,dots", "--iterations", "3", "--json", str(path)]
    assert main.main(["bench", "train", *words]) == 0
    out = capsys.readouterr().out
    assert len(json.loads(path.read_text())) == 4
    assert out.count("40.4%") == 2 and out.count("not run: needs 200.0 GB") == 2
    assert "4b, 5000.0 M parameters" in out and "rows of 2100 tokens" in out and "K=8" in out
    (asked,) = runs
    assert [(t.remat, t.rows) for t in asked[1]] == [("full", 1), ("full", 2), ("dots", 1), ("dots", 2)]
    assert asked[2:] == (3, 2)


def test_fields_of_the_recipe_and_the_mode_reach_the_run(runs):
    words = ["--preset", "tiny", "--mode", "expert", "--set", "loss.dropout=0", "--set", 'dtype="float32"']
    assert main.main(["bench", "train", *words, "--set", "augment=none", "--samples", "4"]) == 0
    run = runs[0][0]
    assert (run.loss.dropout, run.dtype, run.augment, run.loss.num_samples) == (0, "float32", "none", 4)
    assert run.frozen and run.loss.insulate


def test_nothing_that_fits_is_a_failure(runs):
    assert main.main(["bench", "train", "--preset", "tiny", "--rows", "2"]) == 1


@pytest.mark.parametrize("words", [["loss.dropout"], ["loss.dropout.x=1"], ["nothing.here=1"]])
def test_an_assignment_into_nothing_is_refused(words, runs, capsys):
    assert main.main(["bench", "train", "--preset", "tiny", "--set", *words]) == 2
    assert "expected KEY=VALUE with the path of a field" in capsys.readouterr().err


def test_a_field_that_does_not_exist_is_refused_by_the_recipe(runs, capsys):
    assert main.main(["bench", "train", "--preset", "tiny", "--set", "loss.dropuot=0"]) == 2
    assert "Did you mean 'dropout'" in capsys.readouterr().err


def test_rates_that_a_device_does_not_tell_are_left_open():
    found = {
        "trial": {"rows": 1, "remat": "full", "attention": "matmul"}, "compiled": COMPILED, "planned": {"total": 1e9},
        "step": TIMES, "tokens_per_second_per_device": 5.0, "model_tflops_per_device": 0.1, "peak_bytes": None,
    }  # fmt: skip
    assert command.line(found).split()[3:9] == ["100.0", "110.0", "5", "0.100", "-", "-"]


def test_a_trial_that_was_not_even_compiled_says_so_in_its_line():
    trial = {"rows": 8, "remat": "none", "attention": "matmul"}
    line = command.line({"trial": trial, "planned": {"total": 9e11}, "not": "needs 900.0 GB, the device has 141.0"})
    assert line.split()[3:6] == ["-", "900.00", "-"] and line.endswith("not run: needs 900.0 GB, the device has 141.0")
