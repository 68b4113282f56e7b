import dataclasses
import json

import jax
import numpy as np
import pytest

from molmoact2_jax.eval import bench_train
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.train import memory, setup

SIZES = dict(tokens=64, samples=2, crops=1, chunks=1)
TRIALS = [bench_train.Trial(1, "full"), bench_train.Trial(2, "none")]


@pytest.fixture(scope="module")
def run():
    made = dataclasses.replace(bench_train.base("tiny", **SIZES), dtype="float32", augment="none")
    shallow = {"vit": {"taps": [1, 0], "depth": 2}, "llm": {"depth": 2}, "expert": {"depth": 2}}
    model = dataclasses.replace(made.model, overrides=shallow)
    return dataclasses.replace(made, model=model, mesh=meshes.MeshConfig(fsdp=1))


@pytest.fixture(scope="module", autouse=True)
def one_device():
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        yield


@pytest.fixture(scope="module")
def found(run):
    return list(bench_train.sweep(run, TRIALS, 2, 1))


def test_every_trial_is_timed_with_its_rates_and_the_bytes_of_plan_and_compiler(found):
    assert [one["trial"]["rows"] for one in json.loads(json.dumps(found))] == [1, 2]
    for one in found:
        times, rows = one["step"], one["trial"]["rows"]
        assert 0 < times["min"] <= times["p50"] <= times["p99"] and times["samples"] == 2
        assert one["tokens_per_second_per_device"] == pytest.approx(rows * 64 / times["p50"] * 1e3)
        assert one["model_tflops_per_device"] == pytest.approx(one["flops_per_step"] / times["p50"] / 1e9)
        assert one["planned"]["total"] == sum(one["planned"][kind] for kind in memory.KINDS)
        assert one["compiled"]["total"] >= one["compiled"]["arguments"] > 0
        assert "mfu" not in one and one["peak_bytes"] is None  # a processor tells neither
    assert found[1]["flops_per_step"] == 2 * found[0]["flops_per_step"]


def test_each_step_consumes_the_state_of_the_one_before_and_the_last_is_returned(run):
    made = setup.prepare(bench_train.at(run, bench_train.Trial(2, "full")))

    def program(state, rows):
        assert rows.tokens.shape == (2, 64)
        return state + 1, {"loss": np.float32(state)}

    state, measured = bench_train.timed(made, program, 5, 2, 1)
    assert (state, measured["loss"], measured["step"]["samples"]) == (8, 7.0, 2)


def test_a_trial_that_the_device_cannot_hold_is_told_and_the_next_is_measured(run, monkeypatch):
    needs = memory.Compiled(10**9, 10**9, 2 * 10**9, 1.0)
    monkeypatch.setattr(memory, "compiled", lambda made: (None, needs))
    told = []
    for limit in (10**9, 10**6):  # too little by the compiler, and so little that it need not be asked
        monkeypatch.setattr(bench_train, "_limit", lambda limit=limit: limit)
        told += bench_train.sweep(run, TRIALS[:1], 1, 0)
    assert told[0]["not"] == "needs 2.0 GB, the device has 1.0" and "compiled" in told[0]
    assert "compiled" not in told[1] and "not" in told[1]
    monkeypatch.setattr(bench_train, "_limit", lambda: None)
    answers = iter([jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore"), (None, {"step": {}})])

    def timed(made, program, state, *rest, **options):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(bench_train, "timed", timed)
    monkeypatch.setattr(setup, "initial_state", lambda made: None)
    one, two = bench_train.sweep(run, TRIALS, 1, 0)
    assert one["not"] == "RESOURCE_EXHAUSTED: out of memory" and "step" not in one
    assert two["step"] == {} and "not" not in two


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (bench_train.Trial(1, "some"), "remat: 'some', expected"),
        (bench_train.Trial(1, "full", "fast"), "attention: 'f"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused_by_name(run, trial, message):
    with pytest.raises(ValueError, match=message):
        bench_train.at(run, trial)


def test_a_trial_sets_rows_policy_and_attention_of_all_towers(run):
    made = bench_train.at(run, bench_train.Trial(4, "dots", "xla"))
    assert (made.batch_size, made.loss.remat_vit, made.loss.remat_llm, made.loss.remat_expert) == (4, *["dots"] * 3)
    assert all(made.model.overrides[tower]["attention"] == "xla" for tower in bench_train.TOWERS)
    assert made.model.overrides["llm"]["depth"] == 2
