import json

import pytest

from molmoact2_jax.parallel import processes

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "8", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_GPUS_ON_NODE": "4",
}  # fmt: skip
HAND = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}

JOB = """
import json
import jax, numpy as np
from molmoact2_jax.parallel import mesh, processes

first, again = processes.start(), processes.start()
assert first == again
built = mesh.build(mesh.MeshConfig(data=DATA, fsdp=-1, tensor=TENSOR))
rows = mesh.rows_here(built, 8)
whole = mesh.assemble({"x": np.float32(rows)[:, None] * np.ones((1, 3), np.float32)}, built, 8)["x"]
total = jax.jit(lambda x: (x[:, 0] * 8.0 ** np.arange(8)).sum())(whole)
print(json.dumps([jax.process_index(), jax.process_count(), rows.tolist(), float(total)]))
"""


def test_nothing_in_the_environment_means_one_process():
    assert processes.detect({}, tpu=False) == processes.Launch("single")


def test_a_launch_by_hand_is_read_from_three_variables():
    launch = processes.detect(HAND | SLURM, tpu=True)
    assert launch.kind == "hand"
    assert (launch.arguments["num_processes"], launch.arguments["process_id"]) == (2, 1)


def test_an_indexed_kubernetes_job_gives_the_process_index():
    env = {name: value for name, value in HAND.items() if name != "JAX_PROCESS_ID"}
    assert processes.detect(env | {"JOB_COMPLETION_INDEX": "0"}, tpu=False).arguments["process_id"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_NUM_PROCESSES": None}, "JAX_NUM_PROCESSES is None, expected a number"),
        ({"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID is 'one', expected a number"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2, expected less than 2"),
    ],
)
def test_a_half_set_launch_is_refused_rather_than_run_alone(change, message):
    env = {name: value for name, value in (HAND | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        processes.detect(env, tpu=False)


def test_a_slurm_step_is_recognised_and_a_bare_allocation_is_not():
    assert processes.detect(SLURM, tpu=False).kind == "slurm"
    assert processes.detect({"SLURM_JOB_ID": "7"}, tpu=False).kind == "single"


def test_tpus_are_used_unless_another_platform_is_asked_for():
    assert processes.detect({}, tpu=True).kind == "tpu"
    assert processes.detect({"JAX_PLATFORMS": "cpu"}, tpu=True).kind == "single"


@pytest.mark.parametrize(
    ("change", "devices"),
    [
        ({}, [1]),  # one task per GPU, all visible
        ({"CUDA_VISIBLE_DEVICES": "3"}, [0]),  # one task per GPU, only its own visible
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_LOCALID": "0"}, [0, 1, 2, 3]),  # one task per node
        ({"SLURM_STEP_TASKS_PER_NODE": "2"}, [2, 3]),
        ({"SLURM_GPUS_ON_NODE": "0"}, None),
    ],
)
def test_a_slurm_task_takes_its_share_of_the_gpus(change, devices):
    assert processes.slurm_devices(SLURM | change) == devices


def test_gpus_that_tasks_cannot_share_evenly_are_refused():
    with pytest.raises(ValueError, match="4 GPUs for 3 tasks on a node"):
        processes.slurm_devices(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3"})


@pytest.mark.parametrize(
    ("data", "tensor", "rows"),
    [(2, 1, [[0, 1, 2, 3], [4, 5, 6, 7]]), (1, 4, [list(range(8)), list(range(8))])],
)
def test_two_processes_assemble_one_batch(run_processes, data, tensor, rows):
    printed = run_processes(JOB.replace("DATA", str(data)).replace("TENSOR", str(tensor)))
    results = sorted(json.loads(text.splitlines()[-1]) for text in printed)
    assert [r[:3] for r in results] == [[0, 2, rows[0]], [1, 2, rows[1]]]
    assert {r[3] for r in results} == {sum(i * 8.0**i for i in range(8))}
