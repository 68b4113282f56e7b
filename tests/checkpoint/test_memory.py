"""Peak memory of loading, in a process of its own."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from molmoact2_jax import config
from molmoact2_jax.checkpoint import config_write, hf
from molmoact2_jax.nn import ops

GB = 1e9
SOURCE = """
import resource, sys
import jax, jax.numpy as jnp
from molmoact2_jax.checkpoint import hf
from molmoact2_jax.serve import runner

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

jax.block_until_ready(jnp.zeros(1))
before = peak()
cfg, params = hf.load(sys.argv[1], jnp.bfloat16)
if sys.argv[2] == "served":
    params = runner.Runner(cfg, params, unroll=True).params
jax.block_until_ready(params)
print(peak() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


def model():
    base = config.preset("bench")
    llm = dataclasses.replace(base.llm, width=1280, mlp_width=5120, depth=16, vocab_size=32_768, num_heads=20)
    connector = dataclasses.replace(base.connector, out_width=1280, mlp_width=5120)
    return dataclasses.replace(
        base, llm=llm, connector=connector, expert=dataclasses.replace(base.expert, depth=llm.depth)
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A directory of 2 GB of float32."""
    directory, cfg = tmp_path_factory.mktemp("large"), model()
    block = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    tensors = {name: np.resize(block, shape) for name, shape in hf.released_shapes(cfg).items()}
    tensors[hf.BUFFER] = ops.frequencies(cfg.llm.rope_base, cfg.llm.head_dim)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config_write.to_released(cfg)))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("what", "most"), [("loaded", 1.2 * GB), ("served", 1.5 * GB)])
def test_two_gigabytes_of_float32_load_as_bfloat16_within_the_result_and_a_leaf(checkpoint, what, most):
    stored = 4 * sum(map(math.prod, hf.released_shapes(model()).values()))
    assert 1.9 * GB < stored < 2.2 * GB
    command = [sys.executable, "-c", SOURCE, str(checkpoint), what]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    used, result = map(int, ran.stdout.split())
    assert abs(result - stored / 2) < 1e3  # the rotary buffer is no parameter
    assert used < most
