"""Times one action call: as served, in one program, and phase by phase (`bench_phases`)."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax import presets
from molmoact2_jax.batch import Observation
from molmoact2_jax.checkpoint import hf
from molmoact2_jax.config import ModelConfig
from molmoact2_jax.data import norm_stats, normalize
from molmoact2_jax.eval import bench_phases, machine, synthetic, timing
from molmoact2_jax.models.molmoact2 import Inputs
from molmoact2_jax.serve import observe, policy, program
from molmoact2_jax.serve.runner import Runner
from molmoact2_jax.train import metrics

METHOD = (
    "milliseconds; each phase is a program of its own that takes from the host what the call takes, and is waited for; "
    "call is the one program as served, arrays of the host in and out; request is preprocess and call; with adaptive "
    "depth the sum counts each pass behind the first, over the whole span, and call_settled starts from the right codes"
)
CHANNELS = 7  # of the arm that a preset pretends to move
Work = dict[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Case:
    """What a call looks like.

    Attributes:
      cameras: pictures of `height` x `width` pixels.
      horizon: steps of a chunk; None takes the checkpoint's, or 10.
      num_steps: evaluations of the flow.
      prompt_tokens: length of the prompt before it is padded; None: what pictures and text take.
      depth: "off" or "adaptive"; of the depth grid, `changed` cells are then predicted, starting from random codes.
      norm_tag: robot of the checkpoint; None takes the first.
    """

    cameras: int = 2
    height: int = 480
    width: int = 640
    horizon: int | None = None
    num_steps: int = 10
    prompt_tokens: int | None = None
    depth: str = "off"
    changed: int = 25
    norm_tag: str | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to measure: `host` is None where only sizes are given and the weights are random."""

    name: str
    cfg: ModelConfig
    host: observe.Host | None
    runner: Runner
    facts: Mapping[str, Any]


def subject(
    source: str | pathlib.Path, dtype: str, *, unroll: bool | None = None, attention: str | None = None
) -> Subject:
    """Loads a checkpoint, or draws the weights of a preset on the device.

    Args:
      source: name of a preset, or a directory in the released format.
      dtype: of weights and computation.
      unroll: as of `Policy`.
      attention: name in `ops.ATTENTION` for all towers; None leaves what the configuration says.
    """
    begin, host = time.perf_counter(), None
    if str(source) in presets.PRESETS:
        cfg = presets.preset(str(source))
        params = synthetic.weights(cfg, dtype)
    else:
        cfg, params = hf.load(source, jnp.dtype(dtype))
        host = observe.Host.load(pathlib.Path(source), cfg)
    cfg = cfg if attention is None else with_attention(cfg, attention)
    leaves = jax.block_until_ready(jax.tree.leaves(params))
    facts = {
        "name": pathlib.Path(source).name, "random_weights": host is None, "dtype": dtype,
        "parameters": sum(leaf.size for leaf in leaves), "parameter_bytes": sum(leaf.nbytes for leaf in leaves),
        "unrolled": jax.default_backend() != "tpu" if unroll is None else unroll, "attention": cfg.llm.attention,
        "solver": cfg.flow.solver, "load_seconds": time.perf_counter() - begin,
    }  # fmt: skip
    return Subject(str(source), cfg, host, Runner(cfg, params, unroll=facts["unrolled"]), facts)


def with_attention(cfg: ModelConfig, name: str) -> ModelConfig:
    """Returns a model whose towers compute attention by another function of `ops.ATTENTION`."""
    towers = {part: getattr(cfg, part) for part in ("vit", "llm", "expert")}
    chosen = {part: dataclasses.replace(tower, attention=name) for part, tower in towers.items() if tower}
    return dataclasses.replace(cfg, **chosen)


def measure(
    model: Subject, case: Case, iterations: int, warmup: int, *, progress: timing.Progress | None = None
) -> dict[str, Any]:
    """Compiles and times a call.

    Returns:
      JSON values: machine, model, case, milliseconds of each phase and of the whole (`timing.Times.summary`), seconds
      of compilation, bytes of memory.

    Raises:
      ValueError: a case that the model cannot compute.
    """
    _check(model.cfg, case)
    made = _Call(model, case)
    work, compiled = made.work()
    taken = timing.rounds(work, iterations, warmup, progress)
    phases = {name: times for name, times in taken.items() if not name.startswith("call")}
    return {
        "machine": machine.describe(),
        "model": dict(model.facts),
        "case": dataclasses.asdict(case) | made.sizes(),
        "method": METHOD,
        "phases": {name: times.summary() for name, times in phases.items()},
        "sum_of_phases": made.total(phases).summary(),
        **{name: times.summary() for name, times in taken.items() if name not in phases},
        "request": (taken["preprocess"] + taken["call"]).summary(),
        "compile_seconds": compiled,
        "memory": metrics.memory() | made.memory(),
        "programs": model.runner.compilations,
    } | made.depth()


def _check(cfg: ModelConfig, case: Case) -> None:
    if cfg.expert is None:
        raise ValueError("bench infer: the checkpoint has no action expert, expected a policy.")
    if case.depth not in ("off", "adaptive"):
        raise ValueError(f"depth: {case.depth!r}, expected 'off' or 'adaptive'.")
    if case.depth == "adaptive" and not cfg.tokens.num_depths:
        raise ValueError("depth: 'adaptive', but the checkpoint does not reason about depth. Use depth='off'.")
    if not 1 <= case.cameras <= observe.MAX_IMAGES:
        raise ValueError(f"cameras: {case.cameras}, expected 1 to {observe.MAX_IMAGES}.")
    if case.horizon is not None and not 1 <= case.horizon <= cfg.max_horizon:
        raise ValueError(f"horizon: {case.horizon}, expected 1 to {cfg.max_horizon}.")
    if not 0 <= case.changed <= cfg.num_depth_codes:
        raise ValueError(f"changed: {case.changed}, expected 0 to {cfg.num_depth_codes} cells.")


class _Call:
    """The arguments of one call, and the functions that compute it and its phases."""

    def __init__(self, model: Subject, case: Case):
        self.model, self.case, self.cfg = model, case, model.cfg
        self.tag = _tag(model.host, case)
        self.horizon = case.horizon or self.tag.horizon or 10
        self.pictures = synthetic.pictures(case.cameras, case.height, case.width)
        self.row = self._row()
        self.bucket = observe.bucket(len(self.row.tokens))
        self.call = self._arguments()
        self.spec = program.Spec("continuous", case.depth, self.horizon, widths=self._widths())
        self.outcome: program.Outcome | None = None
        self.settled: program.Outcome | None = None
        self.compiled: Any = None

    def _widths(self) -> tuple[int, ...]:
        return policy.pass_widths(self.cfg, jax.default_backend()) if self.case.depth == "adaptive" else ()

    def _row(self) -> observe.Row:
        """Everything on the host before the program: resize, prompt, tokens (a preset has no words to tokenise)."""
        depth, host = self.case.depth == "adaptive", self.model.host
        if host is None:
            row = synthetic.prompt_row(self.cfg, self.pictures, depth)
        else:
            state = None if self.tag.state is None else np.zeros(self.tag.state.width, np.float32)
            seen = Observation(
                self.pictures, "pick up the red bowl and place it on the plate", state, _name(host, self)
            )
            row = host.row(seen, "robot_depth_action" if depth else "robot_action", self.pictures)
        return synthetic.lengthen(self.cfg, row, self.case.prompt_tokens)

    def _inputs(self) -> Inputs:
        return observe.pad([self._row()], self.cfg.tokens.pad, self.bucket)

    def _arguments(self) -> program.Call:
        rng, cells, width = np.random.default_rng(0), self.cfg.num_depth_codes, self.cfg.action_dim
        mode = "none" if self.model.host is None else self.model.host.robots.mode
        undo = jax.tree.map(lambda a: np.asarray(a)[None], normalize.inverse(self.tag, mode, width))
        channels = np.arange(width)[None] < (self.tag.action.width if self.tag.action else CHANNELS)
        noise = rng.standard_normal((1, self.horizon, width), np.float32)
        call = program.Call(self._inputs(), program.Robot(undo, channels), noise)
        if self.case.depth == "off":
            return call
        changed = np.zeros((1, cells), bool)
        changed[0, rng.choice(cells, self.case.changed, replace=False)] = True
        draft = rng.integers(0, self.cfg.tokens.num_depths, (1, cells)).astype(np.int32)
        return call._replace(draft=draft, changed=changed)

    def work(self) -> tuple[Work, dict[str, float]]:
        """Compiles everything; returns what to time, in order, and the seconds that each program took."""
        begin = time.perf_counter()
        self.compiled = self.model.runner.compile(self.spec, self.call, self.case.num_steps)
        seconds = {"call": time.perf_counter() - begin}
        phases, more = bench_phases.work(self.cfg, self.model.runner.params, self.call, self.case.num_steps)
        work: Work = {"preprocess": self._inputs, **phases, "call": self._run}
        if self.case.depth == "adaptive":
            self._run()
            work["call_settled"] = self._run_settled
        return work, seconds | more

    def _run(self) -> program.Outcome:
        self.outcome = self.model.runner.call(self.spec, self.call, self.case.num_steps)
        return self.outcome

    def _run_settled(self) -> program.Outcome:
        """The same call with a draft that is right already: one pass."""
        assert self.outcome is not None
        assert self.outcome.codes is not None
        call = self.call._replace(draft=np.asarray(self.outcome.codes.codes))
        self.settled = self.model.runner.call(self.spec, call, self.case.num_steps)
        return self.settled

    def total(self, phases: Mapping[str, timing.Times]) -> timing.Times:
        """Adds the phases of the preparation and of one call, as many depth passes as it took behind the prefill."""
        passes = self.depth()["depth"]["passes"] - 1 if self.spec.depth == "adaptive" else 0
        columns = zip(*(times.scaled(passes if name == "depth pass" else 1).samples for name, times in phases.items()))
        return timing.Times(tuple(sum(column) for column in columns))

    def sizes(self) -> dict[str, Any]:
        """Returns what the case amounts to."""
        image_tokens = int((self.row.tokens == self.cfg.tokens.image_patch).sum())
        return {
            "horizon": self.horizon, "prompt_tokens": len(self.row.tokens), "bucket": self.bucket,
            "image_tokens": image_tokens, "crops": len(self.row.crops), "crop_size": self.cfg.vit.image_size,
            "pass_widths": self.spec.widths, "batch": 1,
        }  # fmt: skip

    def memory(self) -> dict[str, int]:
        """Returns bytes of the program's arguments and temporaries, as the compiler states them."""
        found = self.compiled.memory_analysis()
        if found is None:
            return {}
        return {
            "argument_bytes": found.argument_size_in_bytes, "temporary_bytes": found.temp_size_in_bytes,
            "code_bytes": found.generated_code_size_in_bytes,
        }  # fmt: skip

    def depth(self) -> dict[str, Any]:
        """Returns how many passes the codes took from a random draft and from the right one."""
        if self.outcome is None or self.outcome.codes is None:
            return {}
        assert self.settled is not None
        assert self.settled.codes is not None
        passes, settled = int(self.outcome.codes.passes), int(self.settled.codes.passes)
        return {"depth": {"changed": self.case.changed, "passes": passes, "passes_settled": settled}}


def _tag(host: observe.Host | None, case: Case) -> norm_stats.Tag:
    if host is None:
        return norm_stats.Tag()
    return host.tag(case.norm_tag or next(iter(host.robots.tags)))


def _name(host: observe.Host, made: _Call) -> str:
    return made.case.norm_tag or next(iter(host.robots.tags))
