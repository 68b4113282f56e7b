"""Compares losses, velocities, gradients and the first AdamW step with recorded ones. Source: `golden/README.md`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.checkpoint import rules
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.eval import golden
from molmoact2_jax.models import flow
from molmoact2_jax.nn import params as params_lib
from molmoact2_jax.nn import paths
from molmoact2_jax.nn.params import Params
from molmoact2_jax.train import losses, optim

TOLERANCE = 1e-4  # of the largest value
Arrays = Mapping[str, np.ndarray]


def rows(oracle: golden.Oracle) -> Iterator[golden.Row]:
    """Yields a row for every recorded training array."""
    if "train/input_ids" not in oracle.arrays:
        return
    params = _stacked(oracle.params)
    for kind in ("ki", "noki"):
        found, grads = jax.jit(_evaluate, static_argnums=(0, 1))(
            oracle.cfg, kind == "ki", params, _rows(oracle), _draws(oracle.arrays)
        )
        for name in ("lm_loss", "flow_loss", "velocity"):
            yield golden.compare(f"train/{kind}/{name}", found[name], oracle.arrays[f"train/{kind}/{name}"], TOLERANCE)
        yield from _gradients(oracle, kind, grads)
    yield from _adamw(oracle, params, grads)


def _stacked(params: Params) -> Params:
    return {
        name: {k: params_lib.stacked(v) if k == "blocks" else v for k, v in tower.items()}
        for name, tower in params.items()
    }


def _rows(oracle: golden.Oracle) -> losses.Rows:
    """One row with one example: the recorded prompt with its answer, loss on the answer, one chunk."""
    recorded = oracle.arrays
    tokens = recorded["train/input_ids"].astype(np.int32)
    length, prompt = tokens.shape[1], int(recorded["train/prompt_len"])
    answer = np.arange(length)[None] >= prompt - 1
    answer[:, -1] = False
    patch, count = oracle.cfg.vit.patch_size, recorded["train/pixel_values"].shape[0]
    side, grid = oracle.cfg.vit.image_size, oracle.cfg.vit.grid
    patches = np.rint((recorded["train/pixel_values"] + 1) / 2 * 255).astype(np.uint8)
    crops = patches.reshape(count, grid, grid, patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    pooling = recorded["train/image_token_pooling"].astype(np.int32)
    offset = np.repeat(np.arange(count) * grid * grid, len(pooling) // count)[:, None]
    actions = recorded["train/actions"]
    made = dict(
        tokens=tokens,
        positions=np.arange(length, dtype=np.int32)[None],
        segments=np.zeros((1, length), np.int32),
        targets=np.roll(tokens, -1, axis=1),
        weights=answer.astype(np.float32),
        styles=np.zeros((1, length), np.int32),
        crops=crops.reshape(1, count, side, side, 3),
        pooling=np.where(pooling < 0, -1, pooling + offset)[None].astype(np.int32),
        actions=actions[None],
        action_valid=np.ones((1, 1, actions.shape[1]), bool),
        channel_valid=~recorded["train/action_dim_is_pad"][None],
        chunk_example=np.zeros((1, 1), np.int32),
        row=np.zeros(1, np.int32),
    )
    return losses.Rows(**{name: jnp.asarray(value) for name, value in made.items()})


def _draws(recorded: Arrays) -> tuple[np.ndarray, np.ndarray]:
    return recorded["train/t"], recorded["train/eps"]


def _evaluate(cfg: ModelConfig, insulate: bool, params: Params, rows: losses.Rows, draws: tuple) -> tuple[dict, Params]:
    loss = losses.LossConfig(insulate=insulate, z_weight=0.0, dropout=0.0, remat_llm="none", gate_pooling="example")
    problem = losses.Problem(cfg, loss)

    def objective(params: Params) -> tuple[jax.Array, dict]:
        read = losses.read_rows(problem, params, rows, None)
        language, _ = losses.language(problem, params, read.x, rows, losses.totals(rows))
        assert read.visible is not None
        context = jax.tree.map(lambda a: a[:, 0], read.context)
        valid, channels = rows.action_valid[0, 0], rows.channel_valid[0, 0]
        field = losses.chunk_velocity(problem, params, context, read.visible[0, 0], valid)
        noise, chunk = jnp.where(channels, draws[1], 0), jnp.where(channels, rows.actions[0, 0], 0)
        points = jax.vmap(flow.interpolate, in_axes=(0, None, 0))(noise, chunk, draws[0])
        velocity = jnp.where(channels, jax.vmap(field)(points, draws[0]), 0)
        errors = jnp.square(velocity - flow.target(noise, chunk))
        flowed = jnp.sum(errors) / (channels.sum() * errors.shape[0] * errors.shape[1])
        return language + flowed, {"lm_loss": language, "flow_loss": flowed, "velocity": velocity}

    (_, found), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return found, grads


def _gradients(oracle: golden.Oracle, kind: str, grads: Params) -> Iterator[golden.Row]:
    """Compares gradients of some tensors, of which the first rows (of the head: chosen rows) are recorded.

    The scale is the tensor's largest value, but no less than a hundredth of the largest of all: a gradient far below
    the others is float32 rounding in the recorded run too (by up to 3e-3 of its largest value, against float64).
    """
    prefix, recorded = f"train/{kind}/grad/", oracle.arrays
    names = sorted(name for name in recorded if name.startswith(prefix))
    least = 0.01 * max(float(np.abs(recorded[name]).max()) for name in names)
    plain, clipped = _tensors(oracle.cfg, grads), _tensors(oracle.cfg, optim.clip(grads, optim.group_norms(grads), 1.0))
    for name in names:
        tensor = name.removeprefix(prefix)
        # The recorder clipped gradients in place before it stored those of the second run, except copies of rows.
        ours = (clipped if kind == "noki" and not _is_head(tensor) else plain)(tensor)
        ours = ours[recorded["train/head_rows"]] if _is_head(tensor) else ours[: len(recorded[name])]
        row = golden.compare(name, ours, recorded[name], TOLERANCE)
        largest = float(np.abs(recorded[name]).max())
        yield dataclasses.replace(row, error=row.error * largest / max(largest, least))


def _is_head(tensor: str) -> bool:
    return tensor.startswith("lm_head")


def _tensors(cfg: ModelConfig, tree: Params) -> Callable[[str], np.ndarray]:
    """Returns a function from a released name to the tensor made of our leaves."""
    _, parts = rules.expand(rules.released(cfg), cfg)
    leaves = {paths.name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    def find(name: str) -> np.ndarray:
        found = [(part, leaf) for leaf, mine in parts.items() for part in mine if part.name == name]
        found.sort(key=lambda each: each[0].rows.start)
        rows_ = (leaves[leaf] if part.layer is None else leaves[leaf][part.layer] for part, leaf in found)
        return np.concatenate([rules.as_rows(value, part.rule) for value, (part, _) in zip(rows_, found)])

    return find


def _adamw(oracle: golden.Oracle, params: Params, grads: Params) -> Iterator[golden.Row]:
    """Checks the norms that clip, then takes the recorded first step from the recorded gradients at peak rates."""
    recorded, prefix = oracle.arrays, "train/adamw/delta/"
    for group, norm in optim.group_norms(grads).items():
        name = f"train/adamw/norm/{group}"
        yield golden.compare(name, norm, recorded[name], TOLERANCE)
    weights, groups = _tensors(oracle.cfg, params), _tensors_groups(oracle.cfg)
    for name in sorted(n for n in recorded if n.startswith(prefix)):
        tensor = name.removeprefix(prefix)
        gradient, group = recorded[f"train/noki/grad/{tensor}"], groups(tensor)
        before = float(recorded[f"train/adamw/norm/{group}"])
        gradient = gradient * min(1.0, 1 / (before + 1e-6)) if _is_head(tensor) else gradient
        weight = weights(tensor)
        weight = weight[recorded["train/head_rows"]] if _is_head(tensor) else weight[: len(gradient)]
        delta, wanted = _step(gradient, weight, group), recorded[name]
        beyond = np.maximum(np.abs(delta - wanted) - np.spacing(np.abs(weight)), 0)  # each weight may round either way
        error = float(beyond.max() / np.abs(wanted).max())
        yield golden.Row(name, error, TOLERANCE, "beyond one rounding of each weight")


def _tensors_groups(cfg: ModelConfig) -> Callable[[str], str]:
    """Returns a function from a released name to the group of parameters it belongs to."""
    rules_ = {rule.name: rule.leaves[0] for rule in rules.released(cfg)}

    def find(name: str) -> str:
        path = rules_[re.sub(r"\.\d+\.", ".{i}.", name, count=1) if "blocks" in name else name]
        return next(group for group, pattern in optim.GROUPS.items() if re.search(pattern, path))

    return find


def _step(gradient: np.ndarray, weight: np.ndarray, group: str) -> np.ndarray:
    """Returns what the first AdamW step adds to a weight of a group."""
    path = {"vit": "vit", "connector": "connector", "llm": "llm", "action_expert": "expert"}[group]
    cfg = optim.OptimConfig(warmup_steps=0, clip_norm=float("inf"))  # the recorded gradients are clipped already
    train, grads = {path: {"weight": jnp.asarray(weight)}}, {path: {"weight": jnp.asarray(gradient)}}
    moved, _, _ = optim.update(cfg, 10**9, grads, optim.init(cfg, train), train)
    return np.asarray(moved[path]["weight"], np.float64) - weight.astype(np.float64)
