import functools
import importlib.util
import pathlib
import tempfile

import jax
import pytest

from molmoact2_jax.checkpoint import scratch
from molmoact2_jax.data import norm_stats, oxe, robot_options, vlm_registry
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.parallel import partition
from molmoact2_jax.train import memory, recipe, setup

DIRECTORY = pathlib.Path(__file__).parents[2] / "configs"
FILES = sorted(DIRECTORY.glob("*.py"))
STAGES = {
    "pretrain", "posttrain", "posttrain_think", "finetune_yam", "finetune_droid", "finetune_so100", "finetune_libero",
    "finetune_libero_think", "finetune_small", "lora", "expert_only", "er_stage1", "er_stage2", "tiny", "quickstart",
    "metaworld_mt10",
}  # fmt: skip
SCRATCH = {"quickstart": "small", "metaworld_mt10": "medium"}  # trained from nothing, on files of `molmoact2 init`


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def files_of(sizes):
    """The files that `molmoact2 init` writes for a robot with four channels."""
    unit = norm_stats.TagStats(q01=(-1.0,) * 4, q99=(1.0,) * 4)
    tag = norm_stats.Tag(unit, unit, horizon=8, cameras=("front",), setup="one arm", control="steps")
    directory = pathlib.Path(tempfile.mkdtemp())
    scratch.write(directory, scratch.SIZES[sizes], norm_stats.NormStats("q01_q99", {"metaworld": tag}), ["open it"])
    return str(directory)


def build(path, *args):
    """The run of a recipe; the released sizes stand in for a checkpoint that is not here."""
    table = load(path).get_config(*args).to_dict()
    model = table["model"]
    if path.stem in SCRATCH:
        model["sizes"] = files_of(SCRATCH[path.stem])
    elif model.get("sizes") is None and not pathlib.Path(model["init_from"]).exists():
        model["sizes"] = "4b"
    return recipe.build(table)


def prepare(made, devices=8):
    return setup.prepare(made, mesh=meshes.abstract(made.mesh, devices))


def test_every_stage_has_a_recipe():
    assert {path.stem for path in FILES} >= STAGES


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_recipe_lowers_on_eight_devices_without_data_or_weights(path):
    made = prepare(build(path))
    assert partition.unsharded(made.state, made.placed) == []
    assert "stablehlo" in memory.lower(made, "cpu").as_text()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_recipe_is_a_short_table_that_survives_json_and_names_what_exists(path):
    made = build(path)
    assert recipe.difference(recipe.to_json(made), recipe.to_json(recipe.build(recipe.to_json(made)))) == []
    lines = path.read_text().splitlines()
    assert len(lines) < 80 and any(f"configs/{path.name}" in line for line in lines[:8])
    assert "molmoact2_jax" not in path.read_text()
    assert made.data.robots or made.data.vlm_root
    if made.data.vlm_root:
        assert made.data.vlm_mixture in vlm_registry.MIXTURES
    for robot in made.data.robots:
        assert robot.tag in oxe.TAGS or robot.tag == "mine" or robot.meaning
    robot_options.Options(**made.data.robot)


def by_name(name, *args):
    return build(DIRECTORY / f"{name}.py", *args)


def test_the_ablations_of_table_13_switch_what_they_name():
    whole = by_name("finetune_libero_think")
    assert prepare(whole).model.gate == "per_layer" and whole.loss.depth_noise == 0.1
    assert whole.data.robot["styles"] == {"robot_action": 1.0, "robot_depth_action": 1.0}
    changed = {
        name: set(
            line.split(":")[0]
            for line in recipe.difference(recipe.to_json(whole), recipe.to_json(by_name("finetune_libero_think", name)))
        )
        for name in ("no_noise", "no_gate", "no_mixing", "no_noise_no_gate", "no_mixing_no_noise_no_gate")
    }
    assert changed == {
        "no_noise": {"loss.depth_noise"},
        "no_gate": {"model.overrides.gate"},
        "no_mixing": {"data.robot.styles.robot_action"},
        "no_noise_no_gate": {"loss.depth_noise", "model.overrides.gate"},
        "no_mixing_no_noise_no_gate": {
            "loss.depth_noise", "model.overrides.gate", "data.robot.styles.robot_action",
        },
    }  # fmt: skip
    with pytest.raises(ValueError, match="expected one of"):
        load(DIRECTORY / "finetune_libero_think.py").get_config("no_such")


def test_what_each_mode_trains():
    towers = {}
    for name in ("finetune_libero", "lora", "expert_only", "pretrain"):
        made = prepare(by_name(name))
        trained = jax.tree_util.tree_leaves_with_path(made.state.train)
        towers[name] = {path[0].key for path, _ in trained}
    assert towers["finetune_libero"] == towers["lora"] == {"vit", "connector", "llm", "expert"}
    assert towers["expert_only"] == {"expert"}
    assert towers["pretrain"] == {"vit", "connector", "llm"}


def test_low_rank_changes_cover_the_projections_of_the_paper():
    made = prepare(by_name("lora"))
    adapted = [path for path, _ in jax.tree_util.tree_leaves_with_path(made.state.train) if str(path[-1]) == ".down"]
    assert len(adapted) == 7 + 1 + 1 + 6 + 7  # decoder, head, patches, vision blocks, connector
    assert memory.ADAPTED.targets == made.recipe.lora.targets
