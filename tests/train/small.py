"""A very small model with random weights, and packed rows of random examples, for tests of training."""

import dataclasses

import jax
import numpy as np

from molmoact2_jax import presets
from molmoact2_jax.data import images
from molmoact2_jax.models import molmoact2
from molmoact2_jax.train import losses

VOCAB = 96


def model(**changes):
    base = presets.preset("tiny")
    tokens = dataclasses.replace(
        base.tokens, bos=1, eos=1, pad=0, image_start=96, image_end=97, image_patch=98, image_col=99,
        low_res_image_start=100, image_low=101, frame_start=102, frame_end=103, action_output=10, action_start=11,
        action_end=12, action_first=13, num_actions=16, state_start=30, state_end=31, state_first=32, num_states=8,
        depth_output=40, depth_start=41, depth_end=42, depth_first=43, num_depths=16,
    )  # fmt: skip
    return dataclasses.replace(
        base,
        vit=dataclasses.replace(base.vit, depth=2, taps=(1, 0), declared_depth=4, image_size=28, num_positions=4),
        connector=dataclasses.replace(base.connector, mlp_width=32, out_width=32),
        llm=dataclasses.replace(base.llm, width=32, depth=2, mlp_width=48, vocab_size=VOCAB, extra_vocab_size=8),
        expert=dataclasses.replace(base.expert, width=24, depth=2, num_heads=2, mlp_width=32, time_width=8),
        tokens=tokens,
        **changes,
    )


def weights(cfg, seed=0, scale=0.15):
    rng = np.random.default_rng(seed)
    shapes, _ = molmoact2.abstract(cfg)
    return jax.tree.map(lambda s: (scale * rng.normal(size=s.shape)).astype(np.float32), shapes)


def example(rng, length, *, horizon=6, channels=5, image=True, steps=None, depth=False):
    """One example as a row of its own: prompt with a picture, an answer with loss, a chunk."""
    tokens = rng.integers(50, 95, length).astype(np.int32)
    tokens[0] = 1
    if image:
        tokens[1:4] = [96, 98, 97]
    answer = length // 3
    tokens[-answer - 1] = 10
    if depth:
        tokens[-answer - 4 : -answer - 1] = [40, 45, 42]
    tokens[-answer], tokens[-1] = 11, 12
    weights_ = np.zeros(length, np.float32)
    weights_[-answer - 1 : -1] = 2 / np.sqrt(answer)
    valid = np.arange(horizon) < (steps or horizon)
    actions = rng.uniform(-1, 1, (horizon, 32)).astype(np.float32)
    return dict(
        tokens=tokens, weights=weights_, targets=np.roll(tokens, -1), valid=valid,
        channels=np.arange(32) < channels, actions=actions * valid[:, None] * (np.arange(32) < channels),
        crop=rng.integers(0, 256, (28, 28, 3)).astype(np.uint8) if image else None,
    )  # fmt: skip


def pack(groups, length, *, chunks=2, crops=2, first_row=0):
    """Packs lists of examples into rows, padded to `length` tokens."""
    count, window = len(groups), images.pooling_indices(2, 2)
    z = np.zeros
    made = dict(
        tokens=z((count, length), np.int32), positions=z((count, length), np.int32),
        segments=np.full((count, length), -1, np.int32), targets=z((count, length), np.int32),
        weights=z((count, length), np.float32), styles=np.full((count, length), -1, np.int32),
        crops=z((count, crops, 28, 28, 3), np.uint8), pooling=np.full((count, crops, 4), -1, np.int32),
        actions=z((count, chunks, 6, 32), np.float32), action_valid=z((count, chunks, 6), bool),
        channel_valid=z((count, chunks, 32), bool), chunk_example=np.full((count, chunks), -1, np.int32),
        row=np.arange(first_row, first_row + count, dtype=np.int32),
    )  # fmt: skip
    for b, group in enumerate(groups):
        start = shown = 0
        for e, one in enumerate(group):
            part = slice(start, start + len(one["tokens"]))
            for name in ("tokens", "targets", "weights"):
                made[name][b, part] = one[name]
            made["positions"][b, part] = np.arange(len(one["tokens"]))
            made["segments"][b, part], made["styles"][b, part] = 100_000 * e, 0
            if one["crop"] is not None:
                made["crops"][b, shown], made["pooling"][b, shown] = one["crop"], window + 4 * shown
                shown += 1
            made["actions"][b, e], made["action_valid"][b, e] = one["actions"], one["valid"]
            made["channel_valid"][b, e], made["chunk_example"][b, e] = one["channels"], e
            start = part.stop
    return losses.Rows(**made)
