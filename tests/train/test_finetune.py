import json

import jax
import numpy as np
import pytest

import molmoact2_jax as ma2
from molmoact2_jax.cli import main
from molmoact2_jax.train import feed, loop, recipe, setup
from tests.train import cases

STEPS = 120
EXPERT_ALONE = (r"^(vit|connector|llm)/",)


def finetune(run_dir, golden, frozen):
    """Trains the golden checkpoint on the chunks of its own archive."""
    made = recipe.build(
        dict(
            run_dir=str(run_dir), steps=STEPS, batch_size=3, dtype="float32", augment="none", frozen=frozen,
            model=dict(init_from=str(golden)),
            data=dict(
                robots=[dict(path="", tag="libero"), dict(path="", tag="yam")], tokens=256, crops=3, chunks=1,
                robot=dict(action_format="continuous"),
            ),
            loss=dict(num_samples=8, dropout=0.0, remat_vit="none", remat_llm="none", remat_expert="none"),
            optimizer=dict(
                peak_rates=dict(vit=5e-4, connector=5e-4, llm=1e-3, action_expert=5e-3), warmup_steps=20
            ),
            mesh=dict(data=1, fsdp=1, tensor=1), log=dict(every=25), save=dict(every=STEPS),
        )
    )  # fmt: skip
    prepared = setup.prepare(made, jax.devices()[:1])
    sides = feed.Sides.load(golden, prepared.model)
    streams = feed.streams(prepared.model, made.data, sides, cases.opened(golden, sides.stats))
    loader = feed.build_loader(made.data, made.batch_size, streams, (0, 1))
    return loop.Run(prepared, loader, feed.digest(streams)).train()


def predict(directory, arrays):
    """The chunk of the archive's first observation from its recorded noise."""
    observation = [arrays[f"case0/image{i}"] for i in range(2)], "Pick up the red bowl and place it on the plate."
    policy = ma2.Policy.from_pretrained(directory, dtype="float32")
    return policy.predict_action(*observation, arrays["case0/state"], "libero", noise=arrays["case0/noise"][0])


@pytest.mark.parametrize(
    "frozen", [pytest.param((), id="whole", marks=pytest.mark.slow), pytest.param(EXPERT_ALONE, id="expert_alone")]
)
def test_a_few_chunks_are_learnt_and_the_export_acts_as_the_run(tmp_path, golden, frozen, capsys):
    assert finetune(tmp_path / "run", golden / "tiny", frozen) == "finished"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss/flow"] < 0.1 * lines[0]["loss/flow"]

    assert main.main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 0
    assert "largest difference 0.0e+00" in capsys.readouterr().out
    arrays = np.load(golden / "tiny" / "golden.npz")
    ours, exported = (predict(tmp_path / name, arrays) for name in ("run", "out"))
    np.testing.assert_array_equal(ours.actions, exported.actions)
    np.testing.assert_array_equal(ours.trajectory, exported.trajectory)
    learnt, before = (
        np.abs(chunk[:, :7] - arrays["case0/target_actions"]).mean()
        for chunk in (ours.trajectory, arrays["case0/trajectory"][0])
    )
    assert learnt < 0.5 * before, (learnt, before)
