import json

import pytest

from molmoact2_jax.cli import main


def test_every_case_is_printed_and_written(capsys, tmp_path):
    path = tmp_path / "out" / "times.json"
    words = ["--preset", "tiny", "--dtype", "float32", "--cameras", "1", "--steps", "2", "--iterations", "2"]
    assert main.main(["bench", "infer", *words, "--horizon", "3,5", "--warmup", "0", "--json", str(path)]) == 0
    shown, written = capsys.readouterr().out, json.loads(path.read_text())
    assert [found["case"]["horizon"] for found in written] == [3, 5]
    assert shown.count("call, one program") == 2
    assert "jax " in shown and "random weights" in shown and "horizon 5" in shown


def test_layers_and_attention_are_those_asked_for(tmp_path, capsys):
    path = tmp_path / "times.json"
    words = ["--preset", "tiny", "--cameras", "1", "--steps", "1", "--iterations", "1", "--warmup", "0"]
    assert main.main(["bench", "infer", *words, "--layers", "loop", "--attention", "xla", "--json", str(path)]) == 0
    model = json.loads(path.read_text())[0]["model"]
    assert (model["unrolled"], model["attention"], model["dtype"]) == (False, "xla", "bfloat16")


def test_a_directory_that_is_no_checkpoint_is_an_error_in_one_line(tmp_path, capsys):
    assert main.main(["bench", "infer", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_either_a_checkpoint_or_a_preset_is_asked_for():
    with pytest.raises(SystemExit):
        main.main(["bench", "infer"])
