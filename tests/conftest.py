"""Eight CPU devices, float32 products, paths to the golden archives."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One device can wait in several collectives at once, each on a thread of a pool as large as the machine has cores (at
# least one per device): with eight devices on two cores all threads can end up waiting for one that gets none.
os.environ.setdefault("PJRT_NPROC", "64")
FLAGS = {
    "xla_backend_optimization_level": 0,  # the tests compile far longer than they compute
    "xla_force_host_platform_device_count": 8,
    "xla_cpu_parallel_codegen_split_count": 8,  # else one part per thread, which a cached program is put together from
}
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [given, *(f"--{name}={value}" for name, value in FLAGS.items() if name not in given)]
)

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module", autouse=True)
def _programs_end_with_their_file():
    """Compiled programs of all files together would need more memory maps than a process may have."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Directory of the golden archives: tiny, tiny_think, tiny_think_random."""
    return GOLDEN


@pytest.fixture
def run_processes(tmp_path):
    """Runs a Python source as the processes of one distributed job on this machine and returns what each printed."""

    def run(source: str, *args: str, num_processes: int = 2, num_devices: int = 2, timeout: float = 300) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        path = tmp_path / "job.py"
        path.write_text(source)
        running = []
        for index in range(num_processes):
            env = os.environ | {
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(num_processes),
                "JAX_PROCESS_ID": str(index),
            }
            command = [sys.executable, str(path), *args]
            running.append(
                subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        try:
            results = [process.communicate(timeout=timeout) for process in running]
        finally:
            for process in running:
                process.kill()
        for process, (_, errors) in zip(running, results, strict=True):
            assert process.returncode == 0, errors[-4000:]
        return [output for output, _ in results]

    return run
