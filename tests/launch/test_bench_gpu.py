"""`launch/bench_gpu` without a GPU: its commands against stand-ins and the real parsers, and whole with --smoke."""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import pytest

from molmoact2_jax.cli import bench_check, bench_infer, bench_train

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ["check", "infer_bf16", "train", "infer_fp32"]
PARSERS = {"check": bench_check, "infer": bench_infer, "train": bench_train}

PYTHON = f"""#!/bin/bash
case "$*" in
  "-m pip "*) exit 0 ;;
  "-c import jax;"*) [[ -n $GPU_GB ]] && echo "$GPU_GB" || {{ echo "no device" >&2; exit 1; }} ;;
  "-m molmoact2_jax.cli.main "*)
    [[ -n $REAL ]] && exec {sys.executable} "$@"
    printf '%s\\0' "$@" >>"$CALLS"
    printf '\\036' >>"$CALLS"
    exit "${{STATUS:-0}}" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def bench(tmp_path):
    """Runs the script with an environment whose interpreter notes the commands instead of running them."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python, calls = tmp_path / "venv" / "bin" / "python", tmp_path / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*words, **variables):
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHON" and name[:3] != "JAX"}
        env = inherited | {"VENV": str(tmp_path / "venv"), "CALLS": str(calls), "REAL": "", "GPU_GB": ""} | variables
        command = ["bash", str(ROOT / "launch" / "bench_gpu"), *words, "--out", str(tmp_path / "out")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        found = calls.read_text().split("\x1e")[:-1] if calls.exists() else []
        return done, [call.split("\0")[3:-1] for call in found]

    return run


def parsed(call):
    parser = argparse.ArgumentParser()
    PARSERS[call[0]].register(parser.add_subparsers(required=True))
    return parser.parse_args(call)


@pytest.mark.parametrize("words", [[], ["--smoke"]])
def test_every_command_is_one_that_the_parsers_accept_and_writes_a_file_of_its_own(bench, words, tmp_path):
    done, calls = bench(*words, GPU_GB="141")
    assert done.returncode == 0, done.stderr
    assert [pathlib.Path(parsed(call).json) for call in calls] == [tmp_path / "out" / f"{name}.json" for name in NAMES]


def test_released_sizes_are_measured_in_both_dtypes_horizons_and_depths(bench):
    check, bf16, train, fp32 = (parsed(call) for call in bench(GPU_GB="141")[1])
    assert check.cases is None and all((ROOT / path / "golden.npz").is_file() for path in check.archives)
    assert (bf16.dtype, fp32.dtype) == ("bfloat16", "float32")
    for one in (bf16, fp32):
        assert (one.preset, one.horizon, one.depth, one.steps) == ("4b", [10, 30], ["off", "adaptive"], 10)
    assert (train.preset, train.mode, train.tokens, train.samples) == ("4b", "full", 2100, 8)
    assert len(train.rows) > 2 and set(train.remat) == {"full", "dots", "none"}


def test_a_device_that_cannot_hold_all_moments_trains_low_rank_changes(bench):
    assert parsed(bench(GPU_GB="76")[1][2]).mode == "lora"


def test_without_a_gpu_the_reason_and_the_way_out_are_said(bench):
    done, calls = bench()
    assert done.returncode == 1 and not calls
    assert "no device" in done.stderr and "--smoke runs without one" in done.stderr


def test_what_the_limit_cuts_off_is_named_and_a_failure_fails(bench):
    done, calls = bench("--smoke", MINUTES="0")
    assert done.returncode == 0 and not calls
    assert all(f"{name}: not begun" in done.stdout for name in NAMES)
    done, calls = bench("--smoke", STATUS="1")
    assert done.returncode == 1 and len(calls) == 4 and "check: exit status 1" in done.stderr


def test_an_unknown_argument_is_refused(bench):
    done, calls = bench("--fast")
    assert done.returncode == 2 and "--fast: expected" in done.stderr and not calls


@pytest.mark.slow
def test_the_smoke_run_measures_everything(bench, tmp_path):
    done, _ = bench("--smoke", REAL="yes", MINUTES="15")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in NAMES}
    assert all(array["passed"] for array in found["check"][0]["arrays"])
    assert [one["case"]["depth"] for one in found["infer_bf16"]] == ["off", "adaptive"]
    assert all("step" in one and one["compiled"]["total"] > 0 for one in found["train"])
    assert found["infer_fp32"][0]["machine"]["settings"]["jax_default_matmul_precision"] == "highest"
