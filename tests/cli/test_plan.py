import json
import runpy

import pytest

from molmoact2_jax.cli import main, plan, recipe_flags
from molmoact2_jax.train import recipe

RECIPE = ["plan", "--config=configs/tiny.py"]


def test_the_plan_of_a_recipe_labels_every_number(capsys, monkeypatch, golden):
    monkeypatch.chdir(golden.parents[1])
    assert main.main([*RECIPE, "--topology=cpu:8"]) == 0
    out = capsys.readouterr().out
    assert "GB per device (model)" in out and "FLOPs per step (model)" in out and "most rows per device (model)" in out
    for line in ("parameters", "moments", "gradients", "saved activations", "logits", "full", "lora", "expert"):
        assert line in out


@pytest.mark.slow
def test_devices_that_are_here_are_compiled_for(capsys, monkeypatch, golden):
    monkeypatch.chdir(golden.parents[1])
    assert main.main([*RECIPE, "--topology=cpu:8", "--compile"]) == 0
    assert "in all (compiled)" in capsys.readouterr().out


def test_json_holds_bytes_by_kind_and_what_fits(capsys, monkeypatch, golden):
    monkeypatch.chdir(golden.parents[1])
    assert main.main([*RECIPE, "--topology=v5e:2x4", "--memory=1,24", "--compile", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1} and found["model"]["fits"]
    assert found["model"]["total"] == sum(found["model"]["bytes"].values())
    best = found["model"]["largest_rows_per_device"]
    assert best["full"]["24"] >= best["full"]["1"] > 0
    assert "not" in found["compiled"] or found["compiled"]["total"] > 0  # without the compiler for TPUs, its reason


@pytest.mark.parametrize("text", ["h300:1", "h200:0", "h200:2y4", "v5e:"])
def test_a_topology_is_a_known_device_and_counts(text):
    if text.endswith(":"):
        assert plan.parse_topology(text) == ("v5e", 1, "1")
        return
    with pytest.raises(ValueError, match=r"plan\.topology"):
        plan.parse_topology(text)


def test_a_field_that_the_recipe_leaves_out_can_be_set(golden, monkeypatch):
    monkeypatch.chdir(golden.parents[1])
    words = ["--config=configs/tiny.py", "--config.seed=5", "--config.loss.unroll=true", "--config.log.wandb=mine"]
    made = recipe.build(recipe_flags.parse("train", words, lambda values: None)["config"].value.to_dict())
    assert made.seed == 5 and made.loss.unroll and made.log.wandb == "mine" and made.lora is None
    plain = recipe_flags.parse("train", words[:1], lambda values: None)["config"].value.to_dict()
    assert recipe.build(plain) == recipe.build(runpy.run_path("configs/tiny.py")["get_config"]().to_dict())


@pytest.mark.parametrize(("command", "flag"), [("plan", "--topology"), ("train", "--[no]changed")])
def test_help_names_the_fields_and_the_flags(command, flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main([command, "--help"])
    out = capsys.readouterr().out
    assert (
        stopped.value.code == 0 and f"molmoact2 {command} --config=FILE" in out and "optimizer" in out and flag in out
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan"], "no --config"),
        (["plan", "--config=configs/none.py"], "no file 'configs/none.py'"),
        ([*RECIPE, "--config.stepz=3"], "no key 'stepz' in a recipe. Did you mean \"steps\""),
        (
            [*RECIPE, "--config.optimizer.peak_rate.vit=3"],
            "no key 'peak_rate' in a recipe. Did you mean \"peak_rates\"",
        ),
        ([*RECIPE, "--config.steps=many"], "--config.steps=many"),
        ([*RECIPE, "steps=3"], "'steps=3', expected flags alone"),
        ([*RECIPE, "--topology=cpu:3"], "rows"),
        ([*RECIPE, "--config.model.init_from=nowhere"], "no directory"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(words, message, capsys, monkeypatch, golden):
    monkeypatch.chdir(golden.parents[1])
    assert main.main(words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
