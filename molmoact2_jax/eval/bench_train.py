"""Times the training step on packed rows made up for it, and sets memory and FLOPs beside what the plan says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from molmoact2_jax.eval import machine, synthetic, timing
from molmoact2_jax.nn import ops
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.train import losses, memory, metrics, recipe, setup, step

METHOD = (
    "milliseconds of whole steps, waited for; tokens are positions of packed rows without padding; mfu is model FLOPs "
    "(train/flops.py, no recomputation counted) over p50 seconds * devices * dense bfloat16 peak; compiled are bytes "
    "of the compiler's analysis, planned those of the model behind `plan`; peak_bytes is the most that the device held "
    "during the trial, null where an earlier one held more"
)
TOWERS = ("vit", "llm", "expert")
SURELY = 1.25  # a plan of so many times the memory there is need not be compiled: it errs by less


class Trial(NamedTuple):
    """One point of a sweep: rows of the global batch, policy of rematerialisation of all towers, type of attention."""

    rows: int
    remat: str
    attention: str = "matmul"


def base(preset: str, *, tokens: int = 2100, samples: int = 8, crops: int = 8, chunks: int = 5) -> recipe.TrainConfig:
    """Returns a run on rows of made-up examples, of the sizes of post-training unless told otherwise."""
    return recipe.TrainConfig(
        run_dir="",
        steps=1000,
        batch_size=1,
        model=recipe.ModelChoice(sizes=preset),
        data=recipe.DataConfig(
            robots=(recipe.RobotSet("synthetic", "synthetic"),), tokens=tokens, crops=crops, chunks=chunks
        ),
        loss=losses.LossConfig(num_samples=samples),
    )


def at(run: recipe.TrainConfig, trial: Trial) -> recipe.TrainConfig:
    """Returns the run with a trial's choices.

    Raises:
      ValueError: no such policy of rematerialisation or kind of attention.
    """
    for name, given, known in (("remat", trial.remat, losses.REMAT), ("attention", trial.attention, ops.ATTENTION)):
        if given not in known:
            raise ValueError(f"{name}: {given!r}, expected one of {sorted(known)}. Choose one of them.")
    loss = dataclasses.replace(run.loss, remat_vit=trial.remat, remat_llm=trial.remat, remat_expert=trial.remat)
    overrides = dict(run.model.overrides)
    for tower in TOWERS:
        overrides[tower] = {**overrides.get(tower, {}), "attention": trial.attention}
    model = dataclasses.replace(run.model, overrides=overrides)
    return dataclasses.replace(run, batch_size=trial.rows, loss=loss, model=model)


def sweep(
    run: recipe.TrainConfig,
    trials: Sequence[Trial],
    iterations: int,
    warmup: int,
    *,
    progress: Callable[[Trial], timing.Progress | None] = lambda trial: None,
) -> Iterator[dict[str, Any]]:
    """Measures trials one after the other on the same weights, and yields each as soon as it is known.

    A trial that does not fit is told so under "not"; the weights are made anew where it has consumed them.
    """
    state: step.State | None = None
    for trial in trials:
        made = setup.prepare(at(run, trial))
        found, limit = _facts(made, trial), _limit()
        if limit is not None and found["planned"]["total"] > SURELY * limit:
            yield found | _too_large(found["planned"]["total"], limit)
            continue
        program, needs = memory.compiled(made)
        found["compiled"] = needs._asdict()
        if limit is not None and needs.total > limit:
            yield found | _too_large(needs.total, limit)
            continue
        try:
            state = setup.initial_state(made) if state is None else state
            state, measured = timed(made, program, state, iterations, warmup, progress=progress(trial))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            state = None
            yield found | {"not": str(error).splitlines()[0]}
            continue
        yield found | measured


def _too_large(needs: float, limit: float) -> dict[str, str]:
    return {"not": f"needs {needs / 1e9:.1f} GB, the device has {limit / 1e9:.1f}"}


def _facts(made: setup.Setup, trial: Trial) -> dict[str, Any]:
    run, kinds = made.recipe, memory.model(made)
    row = memory.work(made.model, run.data, run.loss.num_samples)
    return {
        "machine": machine.describe(),
        "method": METHOD,
        "model": {"sizes": run.model.sizes, "parameters": sum(x.size for x in jax.tree.leaves(made.shapes)),
                  "trained": sum(x.size for x in jax.tree.leaves(made.state.train)), "dtype": run.dtype,
                  "lora": run.lora is not None, "insulate": run.loss.insulate},
        "trial": trial._asdict(),
        "row": dataclasses.asdict(row),
        "mesh": dict(made.mesh.shape),
        "flops_per_step": memory.flops_per_step(made),
        "planned": {"total": sum(kinds.values()), **kinds},
    }  # fmt: skip


def timed(
    made: setup.Setup,
    program: Any,
    state: step.State,
    iterations: int,
    warmup: int,
    *,
    progress: timing.Progress | None = None,
) -> tuple[step.State, dict[str, Any]]:
    """Runs the step on rows that lie on the device already; returns the state after it, and what was measured."""
    run = made.recipe
    data = synthetic.packed(
        made.model, rows=run.batch_size, tokens=run.data.tokens, crops=run.data.crops, chunks=run.data.chunks
    )
    rows = jax.device_put(step.rows_of(data), meshes.rows_sharding(made.mesh))
    held: list[Any] = [state, None]
    before = _peak()

    def one() -> Any:
        held[0], held[1] = program(held[0], rows)
        return held

    times = timing.rounds({"step": one}, iterations, warmup, progress)["step"]
    flops = memory.flops_per_step(made)
    tokens = run.batch_size * run.data.tokens
    peak = _peak()
    return held[0], {
        "step": times.summary(),
        **metrics.throughput(times.percentile(50) / 1e3, tokens, flops, jax.devices()),
        "loss": float(held[1]["loss"]),
        "peak_bytes": peak if peak > before else None,
    }


def _limit() -> int | None:
    """Returns the bytes that the device lets a process have, None where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def _peak() -> int:
    """Returns the most bytes that the device has held since the process began, 0 where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
