import json

import pytest

from molmoact2_jax.eval import bench_infer

PHASES = ["preprocess", "vision", "decoder", "context", "flow", "post"]


@pytest.fixture(scope="module")
def tiny():
    return bench_infer.subject("tiny", "float32")


@pytest.fixture(scope="module")
def act(tiny):
    case = bench_infer.Case(cameras=1, height=48, width=64, horizon=4, num_steps=2)
    return bench_infer.measure(tiny, case, 5, 1)


def test_the_phases_stand_in_the_order_they_run_and_each_says_how_its_times_spread(act):
    assert list(act["phases"]) == PHASES
    for times in [*act["phases"].values(), act["sum_of_phases"], act["call"], act["request"]]:
        assert 0 < times["min"] <= times["p50"] <= times["p95"] <= times["p99"]
        assert times["samples"] == 5


def test_the_sum_of_the_phases_is_theirs_and_the_call_is_of_its_order(act):
    assert act["sum_of_phases"]["mean"] == pytest.approx(sum(times["mean"] for times in act["phases"].values()))
    assert act["request"]["mean"] == pytest.approx(act["phases"]["preprocess"]["mean"] + act["call"]["mean"])
    assert 0.1 < act["sum_of_phases"]["min"] / act["request"]["min"] < 10  # launches weigh most at this size


def test_a_measurement_says_what_it_ran_on_and_can_be_written(act):
    read = json.loads(json.dumps(act))
    assert read["machine"]["platform"] == "cpu"
    assert {"jax", "jaxlib", "python", "molmoact2-jax"} <= set(read["machine"]["versions"])
    assert read["model"]["random_weights"]
    assert read["model"]["dtype"] == "float32"
    assert read["case"]["prompt_tokens"] <= read["case"]["bucket"]
    assert set(read["compile_seconds"]) == {"call", *PHASES[1:]}
    assert read["memory"]["argument_bytes"] > 0


def test_measuring_compiles_one_program_per_case(tiny, act):
    again = bench_infer.measure(tiny, bench_infer.Case(cameras=1, height=32, width=32, horizon=4, num_steps=2), 1, 0)
    assert again["programs"] == act["programs"]


def test_a_checkpoint_is_measured_with_the_horizon_of_its_robot(golden):
    model = bench_infer.subject(golden / "tiny_think", "float32")
    found = bench_infer.measure(model, bench_infer.Case(num_steps=2, depth="adaptive", changed=3), 1, 0)
    assert list(found["phases"]) == [*PHASES[:3], "depth pass", *PHASES[3:]]
    assert found["case"]["horizon"] == model.host.horizon(model.host.tag(next(iter(model.host.robots.tags))))
    assert not found["model"]["random_weights"]
    assert 1 <= found["depth"]["passes"] <= 1 + 3
    assert found["depth"]["passes_settled"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": 6}, "cameras: 6, expected 1 to 5"),
        ({"depth": "full"}, "depth: 'full', expected"),
        ({"depth": "adaptive"}, "does not reason about depth"),
        ({"horizon": 31}, "horizon: 31, expected 1 to 30"),
        ({"prompt_tokens": 3}, "prompt_tokens: 3, expected at least"),
    ],
)
def test_a_case_that_the_model_cannot_compute_is_refused_by_name(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        bench_infer.measure(tiny, bench_infer.Case(**change), 1, 0)
