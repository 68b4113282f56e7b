"""Compares every stage with arrays that the released implementation recorded. Source: `golden/README.md`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.batch import Observation
from molmoact2_jax.checkpoint import hf
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import images, normalize
from molmoact2_jax.models import llm, molmoact2
from molmoact2_jax.models.molmoact2 import Inputs
from molmoact2_jax.nn import params as nn_params
from molmoact2_jax.nn.params import Params
from molmoact2_jax.serve import observe
from molmoact2_jax.serve.policy import Policy
from molmoact2_jax.serve.records import DepthCache

TOLERANCE = 1e-5  # of the largest value of a stage, float32 on a CPU
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared array: largest difference over the largest recorded value, and what it may be (0: equal to the bit)."""

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


class Oracle:
    """A checkpoint loaded in float32 beside the recorded arrays and the cases they belong to."""

    def __init__(self, checkpoint: str | pathlib.Path, archive: str | pathlib.Path):
        self.cfg, params = hf.load(checkpoint, jnp.float32)
        self.host = observe.Host.load(pathlib.Path(checkpoint), self.cfg)
        self.policy = Policy(self.host, params)
        self.params = self.policy.params
        self.arrays: Arrays = dict(np.load(archive, allow_pickle=False))
        self.cases = json.loads(pathlib.Path(archive).with_suffix(".json").read_text())["cases"]

    def observation(self, index: int, frame: str = "") -> Observation:
        """Returns the recorded observation of a case, with the first camera of one of its later frames."""
        case, prefix = self.cases[index], f"case{index}/"
        pictures = [self.arrays[f"{prefix}image{j}"] for j in range(case["n_images"])]
        if frame and f"{prefix}{frame}/image0" in self.arrays:
            pictures[0] = self.arrays[f"{prefix}{frame}/image0"]
        return Observation(pictures, case["task"], self.arrays[f"{prefix}state"], case["tag"])


def compare(name: str, ours: Any, recorded: np.ndarray, tolerance: float = TOLERANCE) -> Row:
    """Compares one array; shapes must agree but for leading axes of size 1."""
    ours, recorded = np.asarray(ours), np.asarray(recorded)
    a, b = (x.reshape(x.shape[next((i for i, n in enumerate(x.shape) if n != 1), x.ndim) :]) for x in (ours, recorded))
    if a.shape != b.shape:
        return Row(name, float("inf"), tolerance, f"shape {ours.shape}, recorded {recorded.shape}")
    if a.dtype.kind in "iub" or tolerance == 0:
        return Row(name, float((a != b).sum()), 0.0)
    scale = float(np.abs(b).max()) or 1.0
    return Row(name, float(np.abs(a.astype(np.float64) - b).max()) / scale, tolerance)


def rows(oracle: Oracle) -> Iterator[Row]:
    """Yields a row for every recorded array that there is a check for."""
    for index in range(len(oracle.cases)):
        yield from _inputs(oracle, index)
        yield from _stages(oracle, index)
        yield from _discrete(oracle, index)
        yield from _depth(oracle, index)
    yield from _batch(oracle)
    yield from _preprocessing(oracle)
    yield from _codec(oracle)


def unchecked(oracle: Oracle, done: set[str]) -> list[str]:
    """Returns the names of recorded outputs that no row compared."""
    inputs = (
        "image",
        "state",
        "noise",
        "previous_",
        "attention_mask",
        "image_num_crops",
        "image_grids",
        "position_ids",
    )
    named = (name for name in oracle.arrays if name not in done)
    return sorted(n for n in named if not n.rsplit("/", 1)[-1].startswith(inputs) and not n.startswith("fast/"))


def _inputs(oracle: Oracle, index: int) -> Iterator[Row]:
    prefix, host = f"case{index}/", oracle.host
    observation = oracle.observation(index)
    tag, recorded = host.tag(observation.norm_tag), oracle.arrays
    normalized = normalize.normalize(observation.state, tag.state, host.stats.mode)
    yield compare(f"{prefix}normalized_state", normalized, recorded[f"{prefix}normalized_state"], 0)
    row = host.row(observation, "robot_action", observe.pictures(observation, tag, strict_cameras=False))
    yield compare(f"{prefix}in/input_ids", row.tokens, recorded[f"{prefix}in/input_ids"], 0)
    family = np.isin(row.tokens, oracle.cfg.tokens.image_family)
    yield compare(f"{prefix}in/token_type_ids", family, recorded[f"{prefix}in/token_type_ids"].astype(bool), 0)
    pixels = images.patchify(row.crops, host.processor.patch_size).astype(np.float32) / 255 * 2 - 1
    yield compare(f"{prefix}in/pixel_values", pixels, recorded[f"{prefix}in/pixel_values"], 0)
    yield compare(f"{prefix}in/image_token_pooling", _per_image(row.pooling, pixels.shape[1]),
                  recorded[f"{prefix}in/image_token_pooling"], 0)  # fmt: skip


def _per_image(pooling: np.ndarray, patches: int) -> np.ndarray:
    """Returns pooling indices inside each picture, as the released processor has them."""
    return np.where(pooling < 0, -1, pooling % patches)


def prefill_stages(cfg: ModelConfig, params: Params, inputs: Inputs) -> dict[str, jax.Array]:
    """Computes the stages of a prefill that archives record, under their recorded names."""
    prefix, x = molmoact2.prefill(cfg, params, inputs, read=1)
    kv = nn_params.stacked(prefix.kv)
    flat = lambda a: a.reshape(*a.shape[:2], -1)  # noqa: E731
    return {
        "vision_features": molmoact2.vision(cfg, params, inputs.crops, inputs.pooling),
        "last_logits": llm.logits(cfg.llm, params["llm"], x)[:, 0],
        "k_last_layer": flat(kv.k[-1]),
        "v_first_layer": flat(kv.v[0]),
    }


def _stages(oracle: Oracle, index: int) -> Iterator[Row]:
    prefix, recorded, observation = f"case{index}/", oracle.arrays, oracle.observation(index)
    tag = oracle.host.tag(observation.norm_tag)
    row = oracle.host.row(observation, "robot_action", observe.pictures(observation, tag, strict_cameras=False))
    inputs = observe.pad([row], oracle.cfg.tokens.pad, len(row.tokens))
    stages = jax.jit(prefill_stages, static_argnums=0)(oracle.cfg, oracle.params, inputs)
    for name, value in stages.items():
        yield compare(prefix + name, value, recorded[prefix + name])
    if oracle.cfg.expert is None:
        return
    noise = recorded[f"{prefix}noise"][0]
    for steps, suffix in ((10, ""), (4, "_4steps")):
        out = oracle.policy.predict_actions([observation], noise=[noise], num_steps=steps)[0]
        if not suffix:
            yield compare(f"{prefix}trajectory", out.trajectory, recorded[f"{prefix}trajectory"])
        name = f"{prefix}actions_continuous{suffix}"
        if name in recorded:
            yield compare(name, out.actions, recorded[name])


def _discrete(oracle: Oracle, index: int) -> Iterator[Row]:
    prefix, recorded = f"case{index}/", oracle.arrays
    if f"{prefix}tokens_discrete" not in recorded:
        return
    out = oracle.policy.predict_actions([oracle.observation(index)], mode="discrete", strict=False)[0]
    yield compare(f"{prefix}tokens_discrete", out.token_ids, recorded[f"{prefix}tokens_discrete"], 0)
    yield compare(f"{prefix}actions_discrete", out.actions, recorded[f"{prefix}actions_discrete"])


def _depth(oracle: Oracle, index: int) -> Iterator[Row]:
    prefix, recorded = f"case{index}/", oracle.arrays
    if not oracle.cfg.depth_reasoning:
        return
    noise = recorded[f"{prefix}noise"][0]
    cache, frame = None, 0
    while f"{prefix}frame{frame}/tokens" in recorded:
        name = f"frame{frame}"
        out, cache = yield from _think(oracle, index, name, cache, noise)
        frame += 1
    if f"{prefix}foreign_cache/tokens" in recorded:
        names = (f"{prefix}foreign_cache/previous_{part}" for part in ("image", "bins"))
        image, codes = (recorded[name] for name in names)
        yield from _think(oracle, index, "foreign_cache", DepthCache(image, codes.astype(np.int32)), noise)
    if f"{prefix}depth_discrete/tokens" in recorded:
        observation = oracle.observation(index)
        out = oracle.policy.predict_actions([observation], depth="adaptive", mode="discrete", strict=False)[0]
        yield compare(f"{prefix}depth_discrete/tokens", out.token_ids, recorded[f"{prefix}depth_discrete/tokens"], 0)
        yield compare(f"{prefix}depth_discrete/actions", out.actions, recorded[f"{prefix}depth_discrete/actions"])
    if f"{prefix}full_depth/tokens" in recorded:
        out = oracle.policy.predict_actions([oracle.observation(index)], depth="full", noise=[noise])[0]
        yield compare(f"{prefix}full_depth/tokens", out.token_ids, recorded[f"{prefix}full_depth/tokens"], 0)
        yield compare(f"{prefix}full_depth/actions", out.actions, recorded[f"{prefix}full_depth/actions"])


def _think(oracle: Oracle, index: int, name: str, cache: DepthCache | None, noise: np.ndarray) -> Any:
    prefix, recorded = f"case{index}/{name}/", oracle.arrays
    frame = "frame2" if name == "foreign_cache" else name
    observation = oracle.observation(index, frame)
    if cache is not None and f"{prefix}update_mask" in recorded:
        from molmoact2_jax.data import depth

        mask = depth.update_mask(cache.image, observation.images[0])
        yield compare(f"{prefix}update_mask", mask, recorded[f"{prefix}update_mask"], 0)
    out = oracle.policy.predict_actions([observation], depth="adaptive", depth_caches=[cache], noise=[noise])[0]
    note = f"{out.changed} cells, {out.passes} passes"
    yield dataclasses.replace(compare(f"{prefix}tokens", out.token_ids, recorded[f"{prefix}tokens"], 0), note=note)
    yield compare(f"{prefix}depth_bins", out.depth_codes, recorded[f"{prefix}depth_bins"], 0)
    yield compare(f"{prefix}actions", out.actions, recorded[f"{prefix}actions"])
    return out, out.depth_cache


def _batch(oracle: Oracle) -> Iterator[Row]:
    if "batch/trajectory" not in oracle.arrays:
        return
    pair = [oracle.observation(0), oracle.observation(2)]
    host, tokens = oracle.host, oracle.cfg.tokens
    rows_ = [
        host.row(one, "robot_action", observe.pictures(one, host.tag(one.norm_tag), strict_cameras=False))
        for one in pair
    ]
    recorded = oracle.arrays["batch/in/input_ids"]
    inputs = observe.pad(rows_, tokens.pad, recorded.shape[1])
    first_valid = inputs.tokens
    yield compare("batch/in/input_ids", np.where(inputs.valid, first_valid, recorded), recorded, 0)
    channels = np.arange(oracle.cfg.action_dim) < np.array([[host.tag(one.norm_tag).action.width] for one in pair])
    trajectory = jax.jit(_trajectory, static_argnums=0)(
        oracle.cfg, oracle.params, inputs, oracle.arrays["batch/noise"], channels
    )
    yield compare("batch/trajectory", trajectory, oracle.arrays["batch/trajectory"])


def _trajectory(cfg: ModelConfig, params: Params, inputs: Inputs, noise: jax.Array, channels: jax.Array) -> jax.Array:
    prefix, _ = molmoact2.prefill(cfg, params, inputs)
    shifts = molmoact2.modulation(cfg, params, cfg.flow.num_steps)
    return molmoact2.act(cfg, params, shifts, molmoact2.context(cfg, params, prefix), noise, channels)


def _preprocessing(oracle: Oracle) -> Iterator[Row]:
    recorded, settings = oracle.arrays, oracle.host.processor
    for shape in ("big", "tall"):
        prefix = f"preproc/{shape}/"
        if f"{prefix}image" not in recorded:
            continue
        crops = images.crops_of(recorded[f"{prefix}image"], settings)
        values = images.patchify(crops.pixels, settings.patch_size).astype(np.float32) / 255 * 2 - 1
        yield compare(f"{prefix}pixel_values", values, recorded[f"{prefix}pixel_values"], 0)
        yield compare(f"{prefix}pooling", crops.pooling, recorded[f"{prefix}pooling"], 0)
        tiles = images.multi_crop(recorded[f"{prefix}image"], settings)
        sums = (images.patchify(tiles.pixels, settings.patch_size).astype(np.float32) / 255 * 2 - 1).sum(axis=-1)
        yield compare(f"{prefix}multi_pixel_values_sum", sums, recorded[f"{prefix}multi_pixel_values_sum"])
        yield compare(f"{prefix}multi_pooling", tiles.pooling, recorded[f"{prefix}multi_pooling"], 0)
        yield compare(f"{prefix}multi_grids", np.asarray(tiles.grid), recorded[f"{prefix}multi_grids"], 0)


def _codec(oracle: Oracle) -> Iterator[Row]:
    recorded, codec = oracle.arrays, oracle.host.codec
    if codec is None or "fast/actions" not in recorded:
        return
    encoded = codec.encode(recorded["fast/actions"])
    yield compare("fast/lens", np.asarray([len(e) for e in encoded]), recorded["fast/lens"], 0)
    yield compare("fast/tokens", np.concatenate(encoded), recorded["fast/tokens"], 0)
    horizon, channels = recorded["fast/actions"].shape[1:]
    streams = np.split(recorded["fast/tokens"], np.cumsum(recorded["fast/lens"])[:-1])
    decoded = codec.decode([s.tolist() for s in streams], horizon, channels)
    yield compare("fast/decoded", decoded, recorded["fast/decoded"])
    bad = codec.decode([recorded["fast/bad_tokens"].tolist()], horizon, channels, strict=False)
    yield compare("fast/bad_decoded", bad, recorded["fast/bad_decoded"], 0)
    for index, case in enumerate(oracle.cases):
        chunk = recorded[f"case{index}/target_actions"]
        ids = codec.encode(chunk.reshape(-1, *chunk.shape[-2:]))[0]
        yield compare(
            f"case{index}/target_action_tokens", np.asarray(ids), recorded[f"case{index}/target_action_tokens"], 0
        )
