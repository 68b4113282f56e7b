"""Everything that decides a training run, as frozen dataclasses built from a table of numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from molmoact2_jax import config
from molmoact2_jax.checkpoint.orbax import Keep
from molmoact2_jax.nn.lora import LoRAConfig
from molmoact2_jax.parallel.mesh import MeshConfig
from molmoact2_jax.train.losses import LossConfig
from molmoact2_jax.train.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """Which network is trained, from which weights.

    Attributes:
      init_from: directory in the released format, or a run of ours, whose weights enter; None starts from random ones.
      sizes: a preset or a directory with `config.json`; None takes those of `init_from`.
      side_files: directory with tokenizer, processor, statistics and codec; None takes those of `init_from` (or sizes).
      overrides: fields of `ModelConfig` that differ, such as gate="per_layer", bidirectional_images=False; a
        mapping reaches into a part (expert={"conditioning": "kv_heads"}).
    """

    init_from: str | None = None
    sizes: str | None = None
    side_files: str | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RobotSet:
    """One robot dataset of the mixture.

    Attributes:
      path: directory, with `@0-9,12` for some episodes; or a pattern (`data/yam/*`) that stands for one set each.
      tag: robot in the statistics.
      meaning: what explains its columns: the name of a row or tag, a JSON file (`data.meanings`) or
        "module:attribute"; None takes `tag`.
      rate, size_factor: its share among the datasets of its tag (`mixture.Share`).
      depth: depth companions by camera, "" for one that serves any; behind a pattern, `*` is the dataset's name.
      quarantine: file of samples that are never drawn (`data check` and `data filter` write it).
    """

    path: str
    tag: str
    meaning: str | None = None
    rate: float = 1.0
    size_factor: float | None = None
    depth: Mapping[str, str] | None = None
    quarantine: str | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What rows are made of.

    Attributes:
      robots: robot datasets.
      tag_rates: share of each tag among the robots; None: equal shares.
      vlm_root: directory of the multimodal sets, or None; `vlm_mixture` names their weights in the registry.
      vlm_rate: probability of a multimodal step ("separate"), or share of multimodal examples in every row ("mixed").
      vlm: "separate" (two loaders, post-training), "mixed" (one, pre-training).
      tokens, vlm_tokens, crops, chunks: limits of a row.
      robot: fields of `robot_options.Options` that differ from their defaults.
      held_out: every that many episodes of a dataset, one is kept for evaluation; 0 keeps none.
      workers: processes that decode; `prefetch` batches wait at most.
      max_damage: share of damaged examples above which the run stops.
    """

    robots: tuple[RobotSet, ...] = ()
    tag_rates: Mapping[str, float] | None = None
    vlm_root: str | None = None
    vlm_mixture: str = "general"
    vlm_rate: float = 0.1
    vlm: str = "separate"
    tokens: int = 2100
    vlm_tokens: int = 4200
    crops: int = 8
    chunks: int = 5
    robot: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    held_out: int = 0
    workers: int = 0
    prefetch: int = 2
    max_damage: float = 0.01


@dataclasses.dataclass(frozen=True)
class SaveConfig:
    """When checkpoints are written, and which stay."""

    every: int = 2000
    keep: Keep = dataclasses.field(default_factory=Keep)


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is reported: a line every `every` steps; a profile of `profile` steps [first, last); wandb project."""

    every: int = 20
    profile: tuple[int, int] | None = None
    wandb: str | None = None


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Validation every `every` steps (0: never) on held-out data: loss of `batches` batches, error of `episodes`."""

    every: int = 0
    batches: int = 4
    episodes: int = 4


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run. `run_dir`, a directory or `gs://BUCKET/PATH`, is all that a restart needs.

    Attributes:
      steps: length of the run and of the schedule.
      batch_size: rows of all devices together; `accumulation` slices of them are computed one after the other.
      dtype: of the forward and backward pass; masters are float32.
      frozen: regular expressions over paths of weights that are not trained; each must match.
      embedding: which tables around the decoder train (`optim.EMBEDDING`).
      lora: adapts the decoder and the vision side by low-rank changes instead of training them.
      augment: mode of the device's augmentation; "none" where the host does it (`data.robot["augment"]`).
      seed: of random draws in the step; data have `data.robot["seed"]`.
    """

    run_dir: str
    steps: int
    batch_size: int
    model: ModelChoice
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    accumulation: int = 1
    dtype: str = "bfloat16"
    frozen: tuple[str, ...] = ()
    embedding: str = "all"
    lora: LoRAConfig | None = None
    augment: str = "full"
    seed: int = 6198
    save: SaveConfig = dataclasses.field(default_factory=SaveConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    evaluate: EvalConfig = dataclasses.field(default_factory=EvalConfig)


# A restart may change these: they alter neither the weights nor the order of the examples.
FREE = ("run_dir", "mesh", "save", "log", "data.workers", "data.prefetch", "evaluate")


def build(values: Mapping[str, Any]) -> TrainConfig:
    """Builds a run from nested mappings.

    Raises:
      ValueError: a key that does not exist (near ones are named), one that is missing, or values that do not fit.
    """
    made = config.build(TrainConfig, values)
    if made.steps < 1 or made.batch_size < 1 or made.batch_size % made.accumulation:
        raise ValueError(
            f"config: steps {made.steps}, batch_size {made.batch_size}, accumulation {made.accumulation}, expected "
            "positive numbers of which accumulation divides batch_size."
        )
    if made.data.vlm not in ("separate", "mixed"):
        raise ValueError(f"config.data.vlm: {made.data.vlm!r}, expected 'separate' or 'mixed'.")
    host = made.data.robot.get("augment", "none")
    if "none" not in (made.augment, host):
        raise ValueError(
            f"config: pictures are augmented twice, {host!r} on the host and {made.augment!r} on the device. Set "
            "augment or data.robot.augment to 'none'."
        )
    return made


def to_json(made: TrainConfig) -> dict[str, Any]:
    """Returns the configuration as JSON values, which `build` reads back equal."""
    return json.loads(json.dumps(dataclasses.asdict(made)))


def difference(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lists what differs between two configurations, except what a restart may change: "loss.num_samples: 4 -> 8"."""
    lines = []
    for key in sorted({*before, *now}):
        name, a, b = prefix + key, before.get(key), now.get(key)
        if name in FREE or a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, name + ".")
        else:
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines
