"""Where scalars and pictures of a run go: JSONL, TensorBoard, and Weights & Biases for those who ask for it."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

RESUMED = ("metrics.jsonl", "wandb_id")  # what writers of a resumed run go on with


class Writer(Protocol):
    """One destination."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step."""

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture u8[H, W, 3]."""

    def close(self) -> None:
        """Flushes and releases."""


class Jsonl:
    """A line of JSON per report in `metrics.jsonl`, pictures as PNG files beside it.

    Lines of steps after `step`, from a run that died before its next checkpoint, are dropped, so that every step is
    there once. A value that is not finite is written as null.
    """

    def __init__(self, directory: pathlib.Path, step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, path = directory, directory / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            path.write_text("".join(f"{line}\n" for line in lines))
        self._file = path.open("a")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        known = {name: float(v) if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps({"step": step} | known) + "\n")
        self._file.flush()

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes NAME_STEP.png."""
        from PIL import Image

        target = self._directory / "pictures" / f"{name}_{step}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step_of(line: str) -> float:
    """Step of a line; infinity for one that was cut off."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf


class TensorBoard:
    """Event files in `tensorboard/`; steps after the one resumed from are hidden."""

    def __init__(self, directory: pathlib.Path, step: int):
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes the picture."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, continued under the same id after a restart."""

    def __init__(self, directory: pathlib.Path, config: Mapping[str, Any], options: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise ValueError(
                "writers: wandb is not installed, expected because the config asks for it. "
                "Run pip install 'molmoact2-jax[wandb]', or remove `wandb` from the config."
            ) from None
        directory.mkdir(parents=True, exist_ok=True)
        known = directory / "wandb_id"
        if not known.exists():
            known.write_text(wandb.util.generate_id())
        self._wandb = wandb
        self._run = wandb.init(id=known.read_text(), resume="allow", config=dict(config), dir=str(directory), **options)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values."""
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs the picture."""
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


class All:
    """Several writers as one."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = writers

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes to each."""
        for writer in self._writers:
            writer.scalars(step, values)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes to each."""
        for writer in self._writers:
            writer.image(step, name, picture)

    def close(self) -> None:
        """Closes each."""
        for writer in self._writers:
            writer.close()


def create(
    directory: pathlib.Path, step: int, *, first: bool, config: Mapping[str, Any], wandb: Mapping[str, Any] | None
) -> Writer:
    """Opens the writers of a run.

    Args:
      directory: `run_dir`.
      step: finished steps of the checkpoint it resumes from, 0 for a new run.
      first: whether this process is the one that writes; the others' writer does nothing.
      config: what Weights & Biases shows as the configuration.
      wandb: options of `wandb.init` such as `project`, or None for no Weights & Biases.
    """
    if not first:
        return All(())
    writers: list[Writer] = [Jsonl(directory, step), TensorBoard(directory, step)]
    if wandb is not None:
        writers.append(WandB(directory, config, wandb))
    return All(writers)
