"""The training run: resumes where it stopped, reports, saves, and leaves on a signal without losing a step."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from molmoact2_jax.batch import Batch
from molmoact2_jax.checkpoint import disk, orbax, runs, storage
from molmoact2_jax.data import quarantine
from molmoact2_jax.data.loader import Loader
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.parallel import partition
from molmoact2_jax.train import flops, folder, metrics, progress, recipe, setup, step, writers

Evaluator = Callable[[step.State, int], Mapping[str, float]]
_log = logging.getLogger(__name__)


class ConfigChangedError(ValueError):
    """The directory holds a run of another configuration."""


class Stop:
    """Whether SIGTERM or SIGINT has asked the run to end; all processes agree on it."""

    def __init__(self) -> None:
        self.reason = ""

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in getattr(self, "_before", {}).items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.reason = signal.Signals(number).name

    def agreed(self) -> bool:
        """Returns whether any process was asked."""
        if jax.process_count() == 1:
            return bool(self.reason)
        asked = bool(np.any(multihost_utils.process_allgather(np.asarray([bool(self.reason)]))))
        if asked and not self.reason:
            self.reason = "a signal to another process"
        return asked


class Opened(NamedTuple):
    """What is open while a run trains."""

    folder: folder.Folder
    checkpoints: orbax.Checkpoints
    writer: writers.Writer
    stop: Stop
    compiled: metrics.Compilations


class Run:
    """One process's part of a training run."""

    def __init__(
        self,
        made: setup.Setup,
        loader: Loader,
        data_digest: Mapping[str, Any],
        evaluators: Sequence[Evaluator] = (),
        changed: bool = False,
    ):
        """Opens `run_dir`, and refuses one that holds a run of another configuration.

        Args:
          made: model, mesh and shardings.
          loader: batches of this process.
          data_digest: identity of the data, kept in every checkpoint.
          evaluators: `(state, step) -> scalars`, called every `evaluate.every` steps and before the first.
          changed: goes on although the configuration differs.

        Raises:
          ConfigChangedError: with the difference.
        """
        self.made, self.recipe, self.loader = made, made.recipe, loader
        self._evaluators = list(evaluators)
        self._directory = storage.path(self.recipe.run_dir)
        _check_unchanged(self._directory, self.recipe, allowed=changed)
        if jax.process_index() == 0:
            runs.describe(self._directory, recipe.to_json(self.recipe), made.model, setup.side_directory(self.recipe))
        self._meta = dict(
            recipe=recipe.to_json(self.recipe), version=importlib.metadata.version("molmoact2-jax"),
            data=dict(data_digest),
        )  # fmt: skip
        self._passes = flops.passes(made.shapes, made.trained)
        self._window, self._aside, self._latest = metrics.Window(), metrics.Window(), dict[str, float]()

    def train(self) -> str:
        """Trains to the last step, or until a signal; returns why it ended. Everything is saved then.

        Raises:
          disk.FullError: the last save does not fit; the checkpoints before it are intact.
          DamageError: too many samples are damaged. Those that were met are listed in `run_dir` then, too.
        """
        with contextlib.ExitStack() as stack:
            first = jax.process_index() == 0
            resumed = (self._quarantine, *(writers.RESUMED if first else ()))
            files = stack.enter_context(folder.create(self._directory, resumed))
            stack.callback(self._list_quarantined, files, final=True)
            stack.enter_context(partition.activate(self.made.mesh))
            stop, compiled = stack.enter_context(Stop()), stack.enter_context(metrics.Compilations())
            checkpoints = stack.enter_context(
                orbax.Checkpoints(self._directory / runs.CHECKPOINTS, self.recipe.save.keep)
            )
            number, state = self._begin(checkpoints)
            writer = writers.create(
                files.path, number, first=first, config=recipe.to_json(self.recipe),
                wandb=None if self.recipe.log.wandb is None else {"project": self.recipe.log.wandb},
            )  # fmt: skip
            stack.callback(writer.close)
            return self._steps(number, state, Opened(files, checkpoints, writer, stop, compiled))

    @property
    def _quarantine(self) -> str:
        """Name of the list of damaged samples: one for all processes, except where they cannot append to one file."""
        alone = jax.process_index() == 0 or not storage.is_address(self._directory)
        return runs.QUARANTINE if alone else f"{jax.process_index()}_{runs.QUARANTINE}"

    def _begin(self, checkpoints: orbax.Checkpoints) -> tuple[int, step.State]:
        found = setup.restore(self.made, checkpoints)
        if found is None:
            _log.info("run %s: starting", self._directory)
            return 0, setup.initial_state(self.made)
        number, state, position = found
        self.loader.restore(position)
        _log.info("run %s: resuming behind step %d", self._directory, number)
        return number, state

    def _steps(self, number: int, state: step.State, opened: Opened) -> str:
        function = step.compile_step(self.made.cfg, self.made.placed, self.made.mesh)
        line, last = progress.Progress(self.recipe.steps), self.recipe.steps
        if number == 0:
            self._evaluate(state, number, opened.writer)
        saved, compiled_for = number, set[str]()
        while number < last and not opened.stop.agreed():
            begin, stream = time.perf_counter(), self.loader.stream(number)
            batch = next(self.loader)
            waited = time.perf_counter() - begin
            rows = meshes.assemble(step.rows_of(batch), self.made.mesh, self.recipe.batch_size)
            with _profiled(self.recipe.log.profile, number, opened.folder.path):
                state, values = function(state, rows)
            number += 1
            self._note(number, batch, values, waited, stream)
            if number == 1 and batch.crops.shape[1]:
                opened.writer.image(number, "first_batch", contact_sheet(batch.crops))
            if stream not in compiled_for:  # rows of another size compile a step of their own
                compiled_for.add(stream)
                jax.block_until_ready(values)
                opened.compiled.settle("step")
                line.start(number)
            if number % self.recipe.log.every == 0 or number in (1, last):
                self._report(number, line, opened)
            if self.recipe.evaluate.every and number % self.recipe.evaluate.every == 0:
                self._evaluate(state, number, opened.writer)
                line.start(number)
            if number % self.recipe.save.every == 0 and number != last and self._save(opened, number, state):
                saved = number
        if saved != number or not opened.checkpoints.steps:
            self._save_last(opened, number, state)
        opened.checkpoints.wait()
        reason = "finished" if number >= last else f"stopped by {opened.stop.reason}"
        _log.info("run %s: %s after step %d, saved", self._directory, reason, number)
        return reason

    def _save(self, opened: Opened, number: int, state: step.State) -> bool:
        """Saves if there is room; a run goes on without."""
        try:
            self._write(opened, number, state)
        except disk.FullError as error:
            _log.error("%s", error)
            return False
        return True

    def _save_last(self, opened: Opened, number: int, state: step.State) -> None:
        if not self._save(opened, number, state):  # perhaps it was the save before that found the disk full
            self._write(opened, number, state)

    def _write(self, opened: Opened, number: int, state: step.State) -> None:
        opened.folder.push()  # a run that resumes from here has every line up to here
        opened.checkpoints.save(number, setup.saved(state, self.loader.state(), self._meta), self._latest)

    def _note(self, number: int, batch: Batch, values: Any, waited: float, stream: str) -> None:
        """Keeps the values of a step; those of multimodal steps apart where steps take turns."""
        tokens = float((batch.segments >= 0).sum()) * jax.process_count()
        loss_tokens = float((batch.weights > 0).sum()) * jax.process_count()
        done = self._flops(batch, loss_tokens)
        shared = {"data_wait_seconds": waited, "tokens": tokens, "loss_tokens": loss_tokens, "flops": done}
        if stream == "vlm" and self.recipe.data.robots:
            self._window.add(shared)
            self._aside.add(values)
        else:
            self._window.add({**values, **shared})

    def _list_quarantined(self, files: folder.Folder, *, final: bool = False) -> None:
        """Writes the damaged samples that were met to `run_dir`, as the next run's `quarantine` reads them."""
        path, met = files.path / self._quarantine, self.loader.report.quarantined
        if not met:
            return
        listed = set(quarantine.read(path))
        entries = [quarantine.Entry(*sample, reason) for sample, reason in met.items()]
        quarantine.append(path, [entry for entry in entries if entry not in listed])
        if final:
            _log.warning(
                "run %s: %d damaged samples were left out, see %s",
                self._directory,
                len(met),
                self._directory / path.name,
            )

    def _report(self, number: int, line: progress.Progress, opened: Opened) -> None:
        values = self._window.report()
        values |= {f"vlm/{name}": value for name, value in self._aside.report().items() if name != "step_seconds"}
        done = values.pop("flops")
        values |= metrics.throughput(values["step_seconds"], values["tokens"], done, jax.devices()) | metrics.memory()
        values |= {"compile_seconds": opened.compiled.seconds, "compilations": sum(opened.compiled.counts.values())}
        values |= self.loader.report.scalars()
        opened.compiled.alarm()
        self._latest |= values
        self._list_quarantined(opened.folder)
        opened.writer.scalars(number, values)
        opened.folder.push_if_due()
        shown = ("loss", "loss/language", "loss/flow", "vlm/loss", "step_seconds", "mfu", "data_wait_seconds")
        _log.info("%s", line.line(number, {name: values[name] for name in shown if name in values}))

    def _flops(self, batch: Batch, loss_tokens: float) -> float:
        """Returns the FLOPs of a step over the rows as they are computed, padding included."""
        rows = self.recipe.batch_size
        work = flops.Work(
            tokens=batch.tokens.shape[1], crops=batch.crops.shape[1], image_tokens=batch.pooling.shape[1],
            loss_tokens=round(loss_tokens / rows), chunks=batch.actions.shape[1],
            samples=self.recipe.loss.num_samples, horizon=batch.actions.shape[2],
        )  # fmt: skip
        return flops.step(self.made.model, work, rows, self._passes)["total"]

    def _evaluate(self, state: step.State, number: int, writer: writers.Writer) -> None:
        if not self.recipe.evaluate.every:
            return
        values: dict[str, float] = {}
        for evaluator in self._evaluators:
            values.update(evaluator(state, number))
        if values:
            writer.scalars(number, values)
            shown = {k: v for k, v in values.items() if k == "validation/loss" or k.startswith("open_loop/")}
            _log.info("step %d: %s", number, " ".join(f"{name} {value:.4g}" for name, value in shown.items()))


def _check_unchanged(directory: storage.Path, made: recipe.TrainConfig, *, allowed: bool) -> None:
    before = runs.read_recipe(directory)
    lines = [] if before is None else recipe.difference(before, recipe.to_json(made))
    if lines and not allowed:
        raise ConfigChangedError(
            f"{directory}: holds a run of another configuration:\n  " + "\n  ".join(lines) + "\n"
            "Choose another run_dir, or go on with --changed if that is meant."
        )
    for line in lines:
        _log.warning("configuration changed: %s", line)


def contact_sheet(crops: np.ndarray, rows: int = 4) -> np.ndarray:
    """Lays crops u8[B, I, H, W, 3] of the first rows out as one picture u8[rows * H, I * W, 3]."""
    shown = crops[:rows]
    count, images, height, width, _ = shown.shape
    return shown.transpose(0, 2, 1, 3, 4).reshape(count * height, images * width, 3)


@contextlib.contextmanager
def _profiled(steps: tuple[int, int] | None, number: int, directory: os.PathLike[str]) -> Iterator[None]:
    """Records a profile from the first of the chosen steps to the last."""
    if steps is not None and number == steps[0]:
        jax.profiler.start_trace(os.path.join(directory, "profile"))
    yield
    if steps is not None and number == steps[1] - 1:
        jax.profiler.stop_trace()
