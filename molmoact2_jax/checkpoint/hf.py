"""Checkpoints in the released format: imported leaf by leaf, and exported so that they load back bit-equal."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import math
import pathlib
import shutil
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from molmoact2_jax.checkpoint import config_json, config_write, rules, safetensors_io
from molmoact2_jax.checkpoint.safetensors_io import Reader
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import ops, paths
from molmoact2_jax.nn.params import Params

Path = str | pathlib.Path
Blocks = list[tuple[rules.Part, str]]  # what a tensor is made of: rows of it, and the leaf that holds them

BUFFER = "model.transformer.rotary_emb.inv_freq"
# weights of the training class that no forward pass reads; some exports kept them
INACTIVE = ("cross_attn.kv_proj", "action_expert.state_encoder", "action_expert.state_norm")
SHARD_BYTES = 5_000_000_000
CHUNK_BYTES = 8_000_000  # read at once by each of a few threads
_log = logging.getLogger(__name__)


def released_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a released checkpoint by name, the rotary buffer included."""
    return {**rules.expand(rules.released(cfg), cfg)[0], BUFFER: (cfg.llm.head_dim // 2,)}


def load(
    directory: Path,
    dtype: Any = None,
    sharding: Callable[[str, tuple[int, ...]], jax.sharding.Sharding] | None = None,
) -> tuple[ModelConfig, Params]:
    """Loads a checkpoint, one leaf at a time: memory peaks at the result plus the largest stacked leaf.

    Args:
      directory: `config.json` and safetensors, in one file or in shards with an index; released names, the same with
        one more leading `model.`, or those of the transformers library.
      dtype: type of the parameters, or a function from a path to it; None keeps each tensor's own.
      sharding: `(path, shape) -> Sharding` of each leaf; None puts all on the default device.

    Returns:
      The configuration and the parameters.

    Raises:
      FileNotFoundError: no configuration, no tensors, or missing shards.
      ValueError: a damaged file; or tensors that are missing, unexpected or misshapen, all listed.
    """
    cfg = config_json.load(directory)
    reader = Reader(directory)
    chosen, prefix = _naming(cfg, reader.shapes)
    tensors, parts = rules.expand(chosen, cfg)
    _check(directory, {prefix + name: shape for name, shape in tensors.items()}, reader.shapes)
    _rotary_buffer(cfg, reader)
    abstract, _ = molmoact2.abstract(cfg)

    def leaf(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        name = paths.name(path)
        kind = dtype(name) if isinstance(dtype, types.FunctionType) else dtype
        host = _assemble(reader, prefix, parts[name], like.shape, kind)
        if sharding is None:
            return jax.device_put(host)
        return jax.make_array_from_callback(like.shape, sharding(name, like.shape), lambda index: host[index])

    return cfg, jax.tree_util.tree_map_with_path(leaf, abstract)


def _assemble(reader: Reader, prefix: str, parts: list[rules.Part], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    kind = np.dtype(dtype or reader.dtype(prefix + parts[0].name))
    out = safetensors_io.fresh(math.prod(shape) * kind.itemsize).view(kind).reshape(shape)

    def fill(part: rules.Part) -> None:
        target = rules.as_rows(out if part.layer is None else out[part.layer, ...], part.rule)
        step = max(1, CHUNK_BYTES * len(target) // max(1, target.nbytes))
        for start in range(0, len(target), step):
            rows = slice(part.rows.start + start, min(part.rows.start + start + step, part.rows.stop))
            target[start : start + step] = reader.read(prefix + part.name, rows)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, parts))
    return out


def _naming(cfg: ModelConfig, names: Any) -> tuple[list[rules.Rule], str]:
    """Which rules fit the names of a checkpoint, and what stands in front of each name."""
    if "model.language_model.embed_tokens.weight" in names:
        return rules.native(cfg), ""
    return rules.released(cfg), "model." if "model.lm_head.weight" in names else ""


def _check(directory: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    extra = found.keys() - expected.keys()
    extra -= {name for name in extra if name.endswith("rotary_emb.inv_freq") or any(i in name for i in INACTIVE)}
    problems = [f"missing {name} {shape}" for name, shape in sorted(expected.items()) if name not in found]
    problems += [f"unexpected {name} {found[name]}" for name in sorted(extra)]
    problems += [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in sorted(expected.items())
        if name in found and found[name] != shape
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(
            f"{directory}: {len(problems)} tensors do not fit config.json. Nothing was loaded; use the config.json "
            f"that was saved with these tensors.\n  {lines}"
        )


def _rotary_buffer(cfg: ModelConfig, reader: Reader | None) -> np.ndarray:
    """Returns the rotary frequencies f32[head_dim / 2] of a model: the stored ones, where there are tensors of it.

    Raises:
      ValueError: those stored are of another base than the configuration's.
    """
    computed = ops.frequencies(cfg.llm.rope_base, cfg.llm.head_dim)
    stored = [name for name in reader.shapes if name.endswith("rotary_emb.inv_freq")] if reader else []
    if not reader or not stored:
        return computed
    found = reader.read(stored[0])
    rounding = 1e-5 if found.dtype.itemsize > 2 else 1e-2
    if found.shape != computed.shape or not np.allclose(found.astype(np.float32), computed, rtol=rounding, atol=0):
        raise ValueError(
            f"{stored[0]}: not the frequencies of rope_theta {cfg.llm.rope_base:g} and head_dim {cfg.llm.head_dim}, "
            "expected those of text_config in config.json. Use the config.json that was saved with these tensors."
        )
    return found


def export(cfg: ModelConfig, params: Params, directory: Path, side_files: Path | None = None) -> None:
    """Writes a directory in the released format.

    Args:
      cfg: the model.
      params: its parameters, without LoRA (merge first); their dtypes are kept.
      directory: where to; made if need be. Files are complete only once `config.json` is there.
      side_files: directory whose other files (tokenizer, statistics, processor, action codec, and `config.json` where
        it describes the same model) are copied along.

    Raises:
      ValueError: a model that the released classes cannot run; weights that are not its.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    sides = None if side_files is None else pathlib.Path(side_files)
    same = sides is not None and (sides / "config.json").is_file() and config_json.load(sides) == cfg
    source = Reader(sides) if sides is not None and same and any(sides.glob("*.safetensors")) else None
    _write_tensors(cfg, params, directory, _rotary_buffer(cfg, source))
    if sides is not None:
        copy_side_files(sides, directory)
    if sides is not None and same:
        shutil.copyfile(sides / "config.json", directory / "config.json")
    else:
        text = json.dumps(config_write.to_released(cfg), indent=2, sort_keys=True)
        (directory / "config.json").write_text(text + "\n")


def _write_tensors(cfg: ModelConfig, params: Params, directory: pathlib.Path, frequencies: np.ndarray) -> None:
    tensors, parts = rules.expand(rules.released(cfg), cfg)
    leaves = {paths.name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    if leaves.keys() != parts.keys():
        differing = sorted(leaves.keys() ^ parts.keys())
        raise ValueError(
            f"export: parameters differ from the model in {', '.join(differing[:8])}, expected plain stacked weights. "
            "Merge LoRA, and export what was loaded or trained rather than a policy's split layers."
        )
    blocks: dict[str, Blocks] = {}
    for leaf, all_parts in parts.items():
        for part in all_parts:
            blocks.setdefault(part.name, []).append((part, leaf))
    sizes = {name: math.prod(tensors[name]) * leaves[blocks[name][0][1]].dtype.itemsize for name in tensors}
    names = sorted(tensors, key=lambda name: (blocks[name][0][1], name))
    shards = _shards({**{name: sizes[name] for name in names}, BUFFER: frequencies.nbytes})
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        data = {name: frequencies if name == BUFFER else _tensor(blocks[name], leaves) for name in shard}
        safetensors.numpy.save_file(data, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        _log.info("wrote %s, %d tensors", file, len(shard))
    if len(shards) > 1:
        total = sum(sizes.values()) + frequencies.nbytes
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _tensor(blocks: Blocks, leaves: dict[str, jax.Array]) -> np.ndarray:
    rows = []
    for part, leaf in sorted(blocks, key=lambda block: block[0].rows.start):
        value = leaves[leaf] if part.layer is None else leaves[leaf][part.layer]
        rows.append(rules.as_rows(np.asarray(value), part.rule))
    return np.ascontiguousarray(np.concatenate(rows))


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if used + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def copy_side_files(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies tokenizer, statistics, processor and codec; not the tensors, nor what describes them."""
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json"):
            continue
        if path.is_dir() and path.name == "action_tokenizer":
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        elif path.suffix in (".json", ".txt", ".jinja"):
            shutil.copyfile(path, target / path.name)
