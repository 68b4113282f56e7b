"""SLURM, TPU and GKE files, as far as a machine without clusters allows: parsed, run against stand-ins, rendered."""

import os
import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

from molmoact2_jax.parallel import processes

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = [LAUNCH / "slurm" / "train.sbatch", *(LAUNCH / "tpu" / name for name in ("create", "train", "settings.sh"))]
TPU = {"NAME": "act2", "ZONE": "us-east5-b"}

RECORD = """#!/usr/bin/env bash
printf '%s\\0' "$(basename "$0")" "$@" >> "$CALLS"
printf '\\036' >> "$CALLS"
case "$*" in *describe*) echo ACTIVE ;; esac
"""


def run(script, *args, tools=(), env=None, cwd=ROOT):
    """Runs a script with stand-ins for the cluster's tools; returns the process and the calls they got."""
    calls = pathlib.Path(cwd) / "calls"
    stand_ins = pathlib.Path(cwd) / "tools"
    stand_ins.mkdir(exist_ok=True)
    for tool in tools:
        (stand_ins / tool).write_text(RECORD)
        (stand_ins / tool).chmod(0o755)
    path = f"{stand_ins}:{os.environ['PATH']}"
    whole = {"PATH": path, "HOME": str(cwd), "CALLS": str(calls), "SLURM_SUBMIT_DIR": str(cwd), **(env or {})}
    done = subprocess.run(["bash", str(script), *args], env=whole, cwd=cwd, capture_output=True, text=True, check=False)
    found = calls.read_text().split("\x1e")[:-1] if calls.exists() else []
    return done, [call.split("\0")[:-1] for call in found]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_the_first_error(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    if script.suffix != ".sh":
        assert "set -euo pipefail" in script.read_text()
        assert os.access(script, os.X_OK)


def test_slurm_starts_the_command_with_the_arguments_it_was_given(tmp_path):
    script = LAUNCH / "slurm" / "train.sbatch"
    done, calls = run(script, "configs/tiny.py", "--config.run_dir=/a dir/run", tools=["srun"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (call,) = calls
    start = call.index(".venv/bin/molmoact2")
    assert call[0] == "srun" and call[start:] == [
        ".venv/bin/molmoact2", "train", "--config=configs/tiny.py", "--config.run_dir=/a dir/run",
    ]  # fmt: skip


def test_slurm_without_a_config_says_what_to_give(tmp_path):
    done, calls = run(LAUNCH / "slurm" / "train.sbatch", tools=["srun"], cwd=tmp_path)
    assert done.returncode != 0 and "give a config" in done.stderr and not calls


def test_slurm_warns_tasks_before_the_limit_and_runs_one_process_per_node():
    text = (LAUNCH / "slurm" / "train.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.M))
    assert options["signal"].startswith("TERM@"), "B: would signal the script alone"
    assert "requeue" in options and options["ntasks-per-node"] == "1"
    env = {"SLURM_GPUS_ON_NODE": options["gpus-per-node"], "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x8)"}
    assert processes.slurm_devices(env) == list(range(8))


def test_tpu_starts_the_same_command_on_every_host(tmp_path):
    script = LAUNCH / "tpu" / "train"
    done, calls = run(script, "configs/tiny.py", "--config.run_dir=/a dir", tools=["gcloud"], env=TPU, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (call,) = calls
    assert "--worker=all" in call and "act2" in call and "--zone=us-east5-b" in call
    (command,) = [part.removeprefix("--command=") for part in call if part.startswith("--command=")]
    home = tmp_path / "host"
    (home / "molmoact2" / ".venv" / "bin").mkdir(parents=True)
    program = home / "molmoact2" / ".venv" / "bin" / "molmoact2"
    program.write_text('#!/usr/bin/env bash\nprintf "%s|" "$@"\nexit 3\n')
    program.chmod(0o755)
    ran = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False)
    assert ran.stdout == "train|--config=configs/tiny.py|--config.run_dir=/a dir|" and ran.returncode == 3
    assert (home / "molmoact2" / "train.log").read_text() == ran.stdout


def test_tpu_creation_waits_for_the_slice_and_installs_on_every_host(tmp_path):
    env = TPU | {"TYPE": "v6e-64", "SHARED": "10.0.0.2:/vol1", "POLL": "0"}
    done, calls = run(LAUNCH / "tpu" / "create", tools=["gcloud", "git"], env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    created, described, archived, copied, installed = calls
    assert "--runtime-version=v2-alpha-tpuv6e" in created and "--spot" in created and "describe" in described
    assert archived[:2] == ["git", "archive"] and "scp" in copied and "--worker=all" in copied
    command = next(part for part in installed if part.startswith("--command="))
    assert "prepare gcs,tpu" in command and "mount -t nfs 10.0.0.2:/vol1 /shared" in command
    subprocess.run(["bash", "-n", "-c", command.removeprefix("--command=")], check=True)


@pytest.mark.parametrize(("script", "missing"), [("create", "NAME"), ("train", "ZONE"), ("create", "TYPE")])
def test_tpu_scripts_name_the_variable_that_is_missing(tmp_path, script, missing):
    env = {name: value for name, value in (TPU | {"TYPE": "v5p-8"}).items() if name != missing}
    done, calls = run(LAUNCH / "tpu" / script, "configs/tiny.py", tools=["gcloud"], env=env, cwd=tmp_path)
    assert done.returncode != 0 and f"set {missing}" in done.stderr and not calls


def jobsets():
    return {d["metadata"]["labels"]["variant"]: d for d in yaml.safe_load_all((LAUNCH / "gke/jobset.yaml").read_text())}


def pods(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    return job, spec, container


@pytest.mark.parametrize("variant", ["tpu", "gpu"])
def test_every_pod_of_a_jobset_runs_the_command_and_is_restarted_after_preemption(variant):
    jobset = jobsets()[variant]
    _, spec, container = pods(jobset)
    assert jobset["kind"] == "JobSet" and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert "command" not in container, "the image's entry point is molmoact2"
    assert container["args"][0] == "train" and container["args"][1].startswith("--config=configs/")
    assert spec["parallelism"] == spec["completions"] and spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 120
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert 0 < int(env["MOLMOACT2_PREEMPTED_EXIT"]) < 126
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_gpu_pods_find_their_place_from_the_environment_the_jobset_gives():
    jobset = jobsets()["gpu"]
    job, spec, container = pods(jobset)
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    launches = [
        processes.detect(env | {"JOB_COMPLETION_INDEX": str(i)}, tpu=False).arguments
        for i in range(spec["completions"])
    ]
    assert spec["completionMode"] == "Indexed"
    assert [launch["process_id"] for launch in launches] == list(range(spec["completions"]))
    assert {launch["num_processes"] for launch in launches} == {spec["completions"]}
    name, subdomain = jobset["metadata"]["name"], jobset["spec"]["network"]["subdomain"]
    host, port = launches[0]["coordinator_address"].split(":")
    assert host == f"{name}-{job['name']}-0-0.{subdomain}"
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]


def test_tpu_hosts_match_the_topology():
    _, spec, container = pods(jobsets()["tpu"])
    topology = spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = 1
    for side in topology.split("x"):
        chips *= int(side)
    assert chips == spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]


def test_the_image_copies_what_exists_and_installs_extras_that_exist():
    text = (LAUNCH / "Dockerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) (.+)$", text, re.M)
    copied = [word for kind, rest in instructions if kind == "COPY" for word in rest.split()[:-1]]
    kept = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert all((ROOT / name).exists() and f"!{name}" in kept for name in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = set(re.search(r"EXTRAS=(\S+)", text)[1].split(",")) | {"tpu"}
    assert asked <= set(extras)
    assert ("ENTRYPOINT", '["molmoact2"]') in instructions
    assert [kind for kind, _ in instructions].index("USER") < [kind for kind, _ in instructions].index("ENTRYPOINT")
