import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax import config
from molmoact2_jax.models import llm, molmoact2
from molmoact2_jax.nn import paths
from molmoact2_jax.train import flops, optim

RELEASED = config.preset("4b")


def test_the_parts_agree_with_the_derivation_of_the_pre_training_stage():
    """training.md 7: 128 rows of 4200 tokens and 8 crops."""
    work = flops.Work(tokens=4200, crops=8, image_tokens=8 * 196, loss_tokens=0)
    found = flops.step(dataclasses.replace(RELEASED, expert=None), work, 128)
    np.testing.assert_allclose(found["llm"], 1.172e16 + 2.00e15, rtol=0.01)
    np.testing.assert_allclose(found["vit"], 1.89e15, rtol=0.01)
    assert found["expert"] == 0
    np.testing.assert_allclose(found["total"], 1.58e16, rtol=0.02)


def test_the_expert_agrees_with_its_number_of_weights():
    shapes, _ = molmoact2.abstract(RELEASED)
    size = {name: leaf.size for name, leaf in zip(paths.names(shapes), jax.tree.leaves(shapes), strict=True)}
    body = sum(n for name, n in size.items() if name.startswith("expert/blocks/") and not name.endswith("_bias"))
    work = flops.Work(tokens=0, crops=0, image_tokens=0, loss_tokens=0, chunks=1, samples=1, horizon=30)
    bare = flops.step(RELEASED, work, 1)["expert"]
    attention = 12 * RELEASED.expert.depth * RELEASED.expert.width * 30 * 30
    known = 6 * (30 * body + size["expert/times/modulation"]) + attention
    np.testing.assert_allclose(bare, known, rtol=0.01)


def test_work_scales_linearly_with_rows_and_samples_but_not_with_context():
    work = flops.Work(tokens=2100, crops=8, image_tokens=1568, loss_tokens=350, chunks=4, samples=4, horizon=30)
    one, two = (flops.step(RELEASED, work, rows)["total"] for rows in (1, 2))
    assert two == 2 * one
    more = flops.step(RELEASED, dataclasses.replace(work, samples=8), 1)
    assert 1 < more["expert"] / flops.step(RELEASED, work, 1)["expert"] < 2  # the context is projected once


def test_the_compiler_counts_the_same_forward_products():
    cfg = config.preset("tiny")
    shapes, _ = molmoact2.abstract(cfg)

    def forward(params, tokens):
        x = llm.embed(cfg.llm, params["llm"], tokens)
        where = llm.Where(llm.rotary(cfg.llm, tokens * 0), jnp.ones((1, 64, 64), bool))
        return llm.logits(cfg.llm, params["llm"], llm.forward(cfg.llm, params["llm"], x, where)[0])

    lowered = jax.jit(forward).lower(shapes, jax.ShapeDtypeStruct((1, 64), np.int32))
    unrolled = lowered.compile().cost_analysis()["flops"]
    work = flops.Work(tokens=64, crops=0, image_tokens=0, loss_tokens=64)
    head = 2 * cfg.llm.width * cfg.llm.vocab_size * 64
    blocks = flops.step(cfg, work, 1)["llm"] / 3 - head
    # The compiler counts the body of a loop once, full attention instead of causal, and element-wise work.
    per_layer = blocks / cfg.llm.depth + 2 * 64 * 64 * cfg.llm.num_heads * cfg.llm.head_dim
    assert 1.0 <= unrolled / (head + per_layer) < 1.15


def test_passes_follow_what_is_trained():
    shapes, _ = molmoact2.abstract(RELEASED)
    assert flops.passes(shapes, optim.trainable(shapes)) == dict.fromkeys(flops.TOWERS, 6.0)
    expert_only = flops.passes(shapes, optim.trainable(shapes, ["^(vit|connector|llm)/"]))
    assert expert_only == {"vit": 2.0, "connector": 2.0, "llm": 2.0, "expert": 6.0}
    frozen_body = flops.passes(shapes, optim.trainable(shapes, ["^vit/", "^llm/blocks/"]))
    assert frozen_body["vit"] == 2.0 and 4.0 < frozen_body["llm"] < 4.5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("TPU v5 lite", 197e12), ("TPU v5p", 459e12),
     ("TPU v6 lite", 918e12), ("cpu", None)],
)  # fmt: skip
def test_peaks_are_known_by_the_kind_of_device(kind, expected):
    assert flops.peak(kind) == expected
