"""From a run's description to its data: side files of the checkpoint, opened datasets, the loader of this process."""

from __future__ import annotations

import dataclasses
import glob
import importlib
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from molmoact2_jax import config
from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import (
    catalog,
    depth_companion,
    loader,
    meanings,
    mixture,
    norm_stats,
    open_files,
    oxe,
    pack,
    plan,
    robot,
    robot_options,
    table,
    vlm,
    vlm_registry,
)
from molmoact2_jax.data.example import Dataset, Encoding
from molmoact2_jax.data.source import EpisodeSource
from molmoact2_jax.data.stream import RowShape, Stream
from molmoact2_jax.text import actions, tokenizer
from molmoact2_jax.train.recipe import DataConfig, RobotSet

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sides:
    """What stands beside the weights: text, pictures, statistics, codec (None where the directory has none)."""

    encoding: Encoding
    stats: norm_stats.NormStats
    codec: actions.ActionCodec | None

    @classmethod
    def load(cls, directory: pathlib.Path, cfg: ModelConfig) -> Sides:
        """Reads the files, and checks that vocabulary and configuration agree on ids."""
        text = tokenizer.Tokenizer.load(directory)
        tokenizer.check(text, cfg.tokens)
        stats, codec = directory / cfg.norm_stats_filename, directory / "action_tokenizer"
        return cls(
            encoding=Encoding(text, cfg.tokens, config_json.load_processor(directory, cfg.vit)),
            stats=norm_stats.load(stats) if stats.is_file() else norm_stats.NormStats(),
            codec=actions.ActionCodec.load(codec) if codec.is_dir() else None,
        )


@dataclasses.dataclass(frozen=True)
class Held:
    """Episodes that training never sees: the robot's tag and the source."""

    tag: str
    source: EpisodeSource


def open_robots(data: DataConfig, sides: Sides) -> tuple[list[tuple[RobotSet, EpisodeSource]], list[Held]]:
    """Opens the robot datasets, every `held_out`-th episode apart, each by a name of its own (`distinct`).

    Raises:
      ValueError: a path that is no dataset, a pattern without one, or a meaning that is unknown.
    """
    data = dataclasses.replace(data, robots=tuple(one for entry in data.robots for one in expand(entry)))
    opened, held = [], []
    shared = open_files.OpenFiles()  # bounded together: a mixture has a thousand datasets
    wholes = [
        _open(entry, sides, table.Options(quarantine=entry.quarantine or None, files=shared)) for entry in data.robots
    ]
    names = distinct([whole.name for whole in wholes], [catalog.parse(entry.path)[0] for entry in data.robots])
    for entry, whole, name in zip(data.robots, wholes, names):
        meaning = _meaning(entry, sides.stats.tag(entry.tag))
        options = table.Options(name=name, also=whole.name, quarantine=entry.quarantine or None, files=shared)
        if name != whole.name:
            whole = _open(entry, sides, options)
        if not data.held_out:
            opened.append((entry, whole))
            continue
        ids, whole_path = whole.episode_ids.tolist(), catalog.parse(entry.path)[0]
        whole.close()
        apart = ids[data.held_out - 1 :: data.held_out]
        kept = [i for i in ids if i not in set(apart)]
        for chosen in (kept, apart):
            if not chosen:
                raise ValueError(f"data.held_out: {data.held_out} of {len(ids)} episodes leaves a part empty.")
        sources = (
            catalog.open_source(
                whole_path, meaning, dataclasses.replace(options, episodes=tuple(chosen)), depth=entry.depth
            )
            for chosen in (kept, apart)
        )
        opened.append((entry, next(sources)))
        held.append(Held(entry.tag, next(sources)))
    return opened, held


def _open(entry: RobotSet, sides: Sides, options: table.Options) -> EpisodeSource:
    return catalog.open_source(entry.path, _meaning(entry, sides.stats.tag(entry.tag)), options, depth=entry.depth)


def distinct(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Tells datasets of one name apart by the directories above them ("ann/pick", "ben/pick"); others keep theirs."""
    parts = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
    found = list(names)
    for depth in range(1, max(map(len, parts), default=0)):
        holders = [{part for other, part in zip(found, parts) if other == name} for name in found]
        if all(len(held) == 1 for held in holders):
            break
        longer = ["/".join(part[-1 - depth :]) for part in parts]
        found = [name if len(held) == 1 else long for name, held, long in zip(found, holders, longer)]
    return found


def expand(entry: RobotSet) -> list[RobotSet]:
    """Lists the datasets that an entry stands for: one for each directory that matches, if its path is a pattern.

    Depth companions that lie among them are left out, and a `*` in `depth` stands for the name of the dataset.

    Raises:
      ValueError: a pattern that matches nothing.
    """
    path, at, episodes = entry.path.partition("@")
    if not glob.has_magic(path):
        return [entry]
    found = sorted(one for one in glob.glob(path) if not depth_companion.recognise(pathlib.Path(one)))
    if not found:
        raise ValueError(f"data.robots: {entry.path!r} matches nothing, expected directories of datasets. Correct it.")
    return [dataclasses.replace(entry, path=one + at + episodes, depth=_companions(entry, one)) for one in found]


def _companions(entry: RobotSet, path: str) -> dict[str, str] | None:
    if entry.depth is None:
        return None
    return {camera: root.replace("*", pathlib.Path(path).name) for camera, root in entry.depth.items()}


def _meaning(entry: RobotSet, tag: norm_stats.Tag) -> oxe.Row | oxe.Tag | str:
    """Finds what explains a dataset: a name in the tables, a JSON file, "module:attribute", or the checkpoint's tag."""
    name = entry.meaning or entry.tag
    if name.endswith(".json"):
        return meanings.read(pathlib.Path(name))
    if ":" in name:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)
    known = {*oxe.TAGS, *oxe.ROWS}
    if name in known:
        return name
    if entry.meaning and entry.meaning != entry.tag:
        raise ValueError(
            f"data.robots.meaning: {name!r} of {entry.path}, expected one of {sorted(known)}, a JSON file or "
            f"module:attribute.{config.near(name, known)} Leave it empty to take the tag's."
        )
    return oxe.Tag(
        name=name, horizon=tag.horizon or 1, setup=tag.setup, control=tag.control, cameras=tag.cameras,
        state_keys=tag.state_keys or ("observation.state",), action_key=tag.action_key or "action",
        normalize_gripper=bool(tag.normalize_gripper),
    )  # fmt: skip


def horizon(cfg: ModelConfig, data: DataConfig, sides: Sides) -> int:
    """Returns the steps of a padded chunk: the longest horizon among the run's robots."""
    return max((sides.stats.tag(r.tag).horizon or cfg.max_horizon for r in data.robots), default=cfg.max_horizon)


def robot_stream(
    cfg: ModelConfig, data: DataConfig, sides: Sides, opened: Sequence[tuple[RobotSet, EpisodeSource]]
) -> Stream:
    """Makes the stream of robot rows."""
    datasets, shares, rates = _robots(cfg, data, sides, opened)
    seed = robot_options.Options(**data.robot).seed
    return _stream(datasets, shares, rates, row_shape(cfg, data, sides, data.tokens), seed)


def _robots(
    cfg: ModelConfig, data: DataConfig, sides: Sides, opened: Sequence[tuple[RobotSet, EpisodeSource]]
) -> tuple[list[Dataset], list[mixture.Share], Mapping[str, float]]:
    """Returns the robot datasets, their shares, and the rates of their tags."""
    base = dict(setup_tokens=cfg.setup_tokens, control_tokens=cfg.control_tokens)
    sizes = dict(horizon=horizon(cfg, data, sides), channels=cfg.action_dim)
    options = robot_options.Options(**{**base, **data.robot, **sizes})
    datasets: list[Dataset] = []
    shares = []
    for entry, source in opened:
        about = robot_options.Robot(entry.tag, sides.stats.tag(entry.tag), sides.stats.mode, sides.codec)
        dataset = robot.RobotDataset(source, about, sides.encoding, options)
        datasets.append(dataset)
        shares.append(mixture.Share(dataset.name, entry.tag, len(dataset), entry.size_factor, entry.rate))
    return datasets, shares, data.tag_rates or dict.fromkeys((entry.tag for entry, _ in opened), 1.0)


def row_shape(cfg: ModelConfig, data: DataConfig, sides: Sides, tokens: int, *, acting: bool = True) -> RowShape:
    """Returns the fixed sizes of rows of `tokens` tokens, with chunks of actions where examples are `acting`."""
    processor = sides.encoding.processor
    grid = processor.image_size // processor.patch_size
    pooled = -(-grid // processor.pooling)
    window = processor.video_pooling if data.vlm_root else processor.pooling
    return RowShape(
        limits=pack.Limits(tokens, data.crops, data.chunks if cfg.expert and acting else 0),
        crop_size=processor.image_size, patches=grid**2, windows=data.crops * pooled**2, window=window**2,
        horizon=horizon(cfg, data, sides), channels=cfg.action_dim, pad=cfg.tokens.pad,
    )  # fmt: skip


def vlm_options(data: DataConfig) -> vlm.Options:
    """Returns the choices for multimodal sets: the host augments all pictures or none, as released."""
    return vlm.Options(augment=robot_options.Options(**data.robot).augment)


def vlm_stream(cfg: ModelConfig, data: DataConfig, sides: Sides) -> Stream:
    """Makes the stream of multimodal rows from the sets that are on disk; the others are named in the log."""
    found = vlm_registry.open_sets(data.vlm_root or "", sides.encoding, data.vlm_mixture, vlm_options(data))
    shape = row_shape(cfg, data, sides, data.vlm_tokens, acting=False)
    return _stream(found.datasets, found.shares, found.rates, shape, mixture.DATA_SEED)


def streams(
    cfg: ModelConfig, data: DataConfig, sides: Sides, opened: Sequence[tuple[RobotSet, EpisodeSource]]
) -> dict[str, Stream]:
    """Makes the streams of a run: robot rows, multimodal rows, both by turns ("separate"), or one of both ("mixed").

    Raises:
      ValueError: the run names no data.
    """
    if not opened and data.vlm_root is None:
        raise ValueError("data: neither robots nor vlm_root, expected one of them. Name a dataset.")
    if not opened:
        return {"vlm": vlm_stream(cfg, data, sides)}
    if data.vlm_root is None:
        return {"robot": robot_stream(cfg, data, sides, opened)}
    if data.vlm == "separate":
        return {"robot": robot_stream(cfg, data, sides, opened), "vlm": vlm_stream(cfg, data, sides)}
    datasets, shares, rates = _robots(cfg, data, sides, opened)
    found = vlm_registry.open_sets(data.vlm_root, sides.encoding, data.vlm_mixture, vlm_options(data))
    together = [*shares, *found.shares]
    both = mixture.blended(rates, found.rates, {share.group for share in together}, data.vlm_rate)
    shape = row_shape(cfg, data, sides, data.tokens)
    return {"robot": _stream([*datasets, *found.datasets], together, both, shape, mixture.DATA_SEED)}


def _stream(
    datasets: Sequence[Dataset], shares: Sequence[mixture.Share], rates: Mapping[str, float], shape: RowShape, seed: int
) -> Stream:
    order = np.argsort([d.name for d in datasets])
    return Stream([datasets[i] for i in order], mixture.weights(shares, rates)[order], shape, seed)


def build_loader(
    data: DataConfig, batch_size: int, made: Mapping[str, Stream], process: tuple[int, int]
) -> loader.Loader:
    """Makes the loader of process `process[0]` of `process[1]`."""
    options = loader.Options(
        global_batch=batch_size, process=process[0], processes=process[1], workers=data.workers,
        prefetch=data.prefetch, max_damage=data.max_damage,
    )  # fmt: skip
    return loader.Loader(made, options, plan.Schedule(tuple(made), data.vlm_rate))


def digest(made: Mapping[str, Stream]) -> dict[str, Any]:
    """Returns the identity of the data for the checkpoint."""
    return {name: stream.identity() for name, stream in made.items()}
