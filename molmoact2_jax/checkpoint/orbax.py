"""Checkpoints of a run: parameters, optimizer state, loader position and what made them, saved while training goes on.

A step is complete or absent: it is written beside the others and renamed when every process has finished. Restoring
needs neither the mesh nor the number of processes that saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from molmoact2_jax.checkpoint import disk, integrity, storage

Tree = Any

_log = logging.getLogger(__name__)
_ITEMS = ("params", "optimizer", "loader", "meta")
_ROOM = 1.05  # free disk space that a save must find, as a multiple of the bytes of its arrays


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints stay.

    Attributes:
      latest: that many of the newest.
      every: those whose step is a multiple of it, or None.
      best: that many with the lowest value of `metric`.
      metric: name of a scalar given to `save`.
    """

    latest: int = 2
    every: int | None = None
    best: int = 0
    metric: str = "loss"


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      params: tree of arrays.
      optimizer: tree of arrays.
      loader: position in the data, JSON, the same on all processes.
      meta: JSON: configuration, code version, digest of the data; `save` adds `shapes` and `checksums`.
    """

    params: Tree
    optimizer: Tree
    loader: Mapping[str, Any]
    meta: Mapping[str, Any]


class Checkpoints:
    """The checkpoints under one directory; a context manager that waits for pending saves at its end."""

    def __init__(self, directory: storage.Where, keep: Keep = Keep()):
        self.directory = _absolute(directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy(keep), cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._open = functools.partial(ocp.CheckpointManager, self.directory, options=options, item_names=_ITEMS)
        self._manager = self._open()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def steps(self) -> list[int]:
        """Complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, saved: Saved, metrics: Mapping[str, float] | None = None) -> None:
        """Copies the arrays from the devices and writes them in the background.

        Args:
          step: number of finished training steps; must be new.
          saved: what to keep.
          metrics: scalars; the one called `Keep.metric` decides what is best.

        Raises:
          disk.FullError: there is no room for it, or was none for the one before. Training can go on and save again.
        """
        with self._explained():
            self._manager.wait_until_finished()
        arrays = {"params": saved.params, "optimizer": saved.optimizer}
        self._check_room(arrays)
        meta = dict(saved.meta) | {"shapes": integrity.shapes(arrays), "checksums": integrity.checksums(arrays)}
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(saved.params),
                    optimizer=ocp.args.StandardSave(saved.optimizer),
                    loader=ocp.args.JsonSave(dict(saved.loader)),
                    meta=ocp.args.JsonSave(meta),
                ),
                metrics=None if metrics is None else dict(metrics),
            )

    def restore(self, params: Tree, optimizer: Tree) -> tuple[int, Saved] | None:
        """Reads the newest checkpoint that is intact.

        One that cannot be read, or whose contents are not what was saved, is reported, moved to `STEP.damaged`, and the
        one before is tried.

        Args:
          params: tree of `ShapeDtypeStruct` with shardings.
          optimizer: likewise.

        Returns:
          The step and its contents, or None where there is no checkpoint.

        Raises:
          ValueError: the checkpoint is of another model, or none is intact.
        """
        damaged = []
        for step in reversed(self.steps):
            try:
                saved = self._read(step, {"params": params, "optimizer": optimizer})
            except integrity.OtherModelError as error:
                raise ValueError(str(error)) from None
            except Exception as error:  # whatever a damaged file makes the readers raise
                reason, saved = f"{type(error).__name__}: {str(error)[:300]}", None
            if not _everywhere(saved is not None):
                damaged.append(step)
                _log.error("checkpoint %s: cannot be read (%s); trying the one before", self.directory / str(step),
                           reason if saved is None else "on another process")  # fmt: skip
                continue
            self._set_aside(damaged)
            return step, saved  # type: ignore[return-value]
        if damaged:
            raise ValueError(f"checkpoint: none of {damaged} under {self.directory} is intact. Start a new run_dir.")
        return None

    def wait(self) -> None:
        """Returns when everything that `save` was given is on disk; raises as `save` does."""
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _read(self, step: int, wanted: dict[str, Tree]) -> Saved:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        integrity.check_model(meta["shapes"], integrity.shapes(wanted), self.directory / str(step))
        read = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(wanted["params"]),
                optimizer=ocp.args.StandardRestore(wanted["optimizer"]),
                loader=ocp.args.JsonRestore(),
            ),
        )
        found = integrity.checksums({"params": read["params"], "optimizer": read["optimizer"]})
        wrong = [name for name, value in found.items() if meta["checksums"][name] != value]
        if wrong:
            raise OSError(f"the contents of {', '.join(wrong[:5])} are not what was saved")
        return Saved(read["params"], read["optimizer"], read["loader"], meta)

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged steps, so that their numbers are free again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                (self.directory / str(step)).rename(self.directory / f"{step}.damaged")
        _everywhere(True)
        self._reopen()

    def _reopen(self) -> None:
        """Starts afresh with what is complete on disk; half-written steps are removed."""
        with contextlib.suppress(Exception):  # a failed save, reported already, is raised once more here
            self._manager.close()
        self._manager = self._open()

    def _check_room(self, arrays: Tree) -> None:
        needed = int(_ROOM * sum(x.nbytes for x in jax.tree.leaves(arrays)))
        free = disk.free(self.directory)
        if not _everywhere(jax.process_index() != 0 or free is None or free >= needed):
            raise disk.FullError(
                f"checkpoint: {(free or 0) / 1e9:.2f} GB free under {self.directory}, expected {needed / 1e9:.2f} GB. "
                f"Steps {self.steps} are intact; free some space, the next save tries again."
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the writers raise when a disk is full into `disk.FullError`."""
        try:
            yield
        except Exception as error:
            if not disk.caused(error):
                raise
            self._reopen()
            raise disk.FullError(
                f"checkpoint: no space left under {self.directory} while writing. Steps {self.steps} are intact; "
                "free some space, the next save tries again."
            ) from error


def read_params(directory: storage.Where, params: Tree, step: int | None = None) -> Tree:
    """Reads the parameters alone, for inference and for starting another run.

    Args:
      directory: of the checkpoints.
      params: tree of `ShapeDtypeStruct` with shardings; a dtype other than the saved one casts.
      step: which checkpoint; the newest unless given.

    Raises:
      ValueError: there is no such checkpoint, or it is of another model.
    """
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(_absolute(directory), options=options, item_names=_ITEMS) as manager:
        steps = sorted(manager.all_steps())
        chosen = steps[-1] if step is None and steps else step
        if chosen is None or chosen not in steps:
            raise ValueError(f"checkpoint: step {step} under {directory}, expected one of {steps}. Name one of them.")
        meta = manager.restore(chosen, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        _check_params(meta["shapes"], params, directory)
        return manager.restore(chosen, args=ocp.args.Composite(params=ocp.args.StandardRestore(params)))["params"]


def _check_params(saved: Mapping[str, Any], params: Tree, directory: storage.Where) -> None:
    """Compares names and shapes; dtypes may differ."""
    saved = {name: shape for name, shape in saved.items() if name.startswith("params/")}
    shapes = {n: [s, saved.get(n, [None, None])[1]] for n, (s, _) in integrity.shapes({"params": params}).items()}
    try:
        integrity.check_model(saved, shapes, directory)
    except integrity.OtherModelError as error:
        raise ValueError(str(error)) from None


def _absolute(directory: storage.Where) -> epath.Path:
    """Orbax writes to absolute paths alone; an address is one."""
    path = epath.Path(storage.path(directory))
    return path if storage.is_address(path) else path.absolute()


def _policy(keep: Keep) -> policies.PreservationPolicy:
    kept: list[policies.PreservationPolicy] = [policies.LatestN(keep.latest)]
    if keep.every:
        kept.append(policies.EveryNSteps(keep.every))
    if keep.best:
        value = lambda metrics: metrics[keep.metric]  # noqa: E731
        kept.append(
            policies.BestN(get_metric_fn=value, reverse=True, n=keep.best, keep_checkpoints_without_metrics=False)
        )
    return policies.AnyPreservationPolicy(kept)


def _everywhere(ok: bool) -> bool:
    """Whether all processes say so."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.asarray(ok)).all())
