"""From a run's description to its data: side files of the checkpoint, opened datasets, the loader of this process."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import (
    catalog,
    loader,
    mixture,
    norm_stats,
    open_files,
    oxe,
    pack,
    plan,
    robot,
    robot_options,
    table,
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
    """Opens the robot datasets, every `held_out`-th episode apart.

    Raises:
      ValueError: a path that is no dataset, or a meaning that is unknown.
    """
    opened, held = [], []
    shared = open_files.OpenFiles()  # bounded together: a mixture has a thousand datasets
    for entry in data.robots:
        meaning = _meaning(entry, sides.stats.tag(entry.tag))
        options = table.Options(quarantine=entry.quarantine, files=shared)
        whole = catalog.open_source(entry.path, meaning, options, depth=entry.depth)
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


def _meaning(entry: RobotSet, tag: norm_stats.Tag) -> oxe.Row | oxe.Tag | str:
    """Finds what explains a dataset: a name in the tables, "module:attribute", or else the checkpoint's own tag."""
    name = entry.meaning or entry.tag
    if ":" in name:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name in oxe.TAGS or name in oxe.ROWS:
        return name
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
    steps = horizon(cfg, data, sides)
    base = dict(setup_tokens=cfg.setup_tokens, control_tokens=cfg.control_tokens)
    options = robot_options.Options(**{**base, **data.robot}, horizon=steps, channels=cfg.action_dim)
    datasets: list[Dataset] = []
    shares = []
    for entry, source in opened:
        about = robot_options.Robot(entry.tag, sides.stats.tag(entry.tag), sides.stats.mode, sides.codec)
        dataset = robot.RobotDataset(source, about, sides.encoding, options)
        datasets.append(dataset)
        shares.append(mixture.Share(dataset.name, entry.tag, len(dataset), entry.size_factor, entry.rate))
    rates = data.tag_rates or dict.fromkeys((entry.tag for entry, _ in opened), 1.0)
    order = np.argsort([d.name for d in datasets])
    shape = row_shape(cfg, data, sides, data.tokens)
    return Stream([datasets[i] for i in order], mixture.weights(shares, rates)[order], shape, options.seed)


def row_shape(cfg: ModelConfig, data: DataConfig, sides: Sides, tokens: int) -> RowShape:
    """Returns the fixed sizes of rows of `tokens` tokens."""
    processor = sides.encoding.processor
    grid = processor.image_size // processor.patch_size
    pooled = -(-grid // processor.pooling)
    window = processor.video_pooling if data.vlm_root else processor.pooling
    return RowShape(
        limits=pack.Limits(tokens, data.crops, data.chunks if cfg.expert else 0),
        crop_size=processor.image_size, patches=grid**2, windows=data.crops * pooled**2, window=window**2,
        horizon=horizon(cfg, data, sides), channels=cfg.action_dim, pad=cfg.tokens.pad,
    )  # fmt: skip


def build_loader(
    cfg: ModelConfig, data: DataConfig, batch_size: int, streams: Mapping[str, Stream], process: tuple[int, int]
) -> loader.Loader:
    """Makes the loader of process `process[0]` of `process[1]`."""
    options = loader.Options(
        global_batch=batch_size, process=process[0], processes=process[1], workers=data.workers,
        prefetch=data.prefetch, max_damage=data.max_damage,
    )  # fmt: skip
    return loader.Loader(streams, options, plan.Schedule(tuple(streams), data.vlm_rate))


def digest(streams: Mapping[str, Stream]) -> dict[str, Any]:
    """Returns the identity of the data for the checkpoint."""
    return {name: stream.identity() for name, stream in streams.items()}
