"""Compiled programs of one set of parameters: made once per shape of call, counted, none behind one's back."""

from __future__ import annotations

import logging
import time
from typing import Any

import jax
import jax.numpy as jnp

from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn.params import Params
from molmoact2_jax.serve import program

_log = logging.getLogger(__name__)


class Runner:
    """Holds parameters and the programs compiled for them."""

    def __init__(self, cfg: ModelConfig, params: Params, *, unroll: bool):
        """Takes the parameters over; `unroll` compiles layers one by one instead of as a loop."""
        self.cfg = cfg
        self.params = unstack(params) if unroll else params
        self._programs: dict[Any, Any] = {}
        self._shifts: dict[int, Any] = {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return len(self._programs)

    def call(self, spec: program.Spec, call: program.Call, num_steps: int) -> program.Outcome:
        """Runs one call and brings its results to the host."""
        shifts = self._modulation(num_steps) if spec.mode == "continuous" else None
        return jax.device_get(self._program(spec, shifts, call)(self.params, shifts, call))

    def replace(self, params: Params) -> None:
        """Takes other weights of the same shapes and dtypes; the programs serve them too."""
        self.params, self._shifts = params, {}

    def compile(self, spec: program.Spec, call: program.Call, num_steps: int) -> Any:
        """Makes the program of a call without running it, and returns it."""
        return self._program(spec, self._modulation(num_steps) if spec.mode == "continuous" else None, call)

    def _modulation(self, num_steps: int) -> Any:
        """Computes the modulation of all steps, once: it depends on the weights alone."""
        if num_steps not in self._shifts:
            make = self._compiled(("modulation", num_steps), molmoact2.modulation, (0, 2), self.params, num_steps)
            self._shifts[num_steps] = make(self.params)
        return self._shifts[num_steps]

    def _program(self, spec: program.Spec, shifts: Any, call: program.Call) -> Any:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves((shifts, call)))
        return self._compiled((spec, shapes), program.run, (0, 1), spec, self.params, shifts, call)

    def _compiled(self, key: Any, function: Any, static: tuple[int, ...], *args: Any) -> Any:
        if key not in self._programs:
            begin = time.perf_counter()
            self._programs[key] = jax.jit(function, static_argnums=static).lower(self.cfg, *args).compile()
            _log.debug("compiled %s in %.1f s", key, time.perf_counter() - begin)
        return self._programs[key]


def unstack(params: Params) -> Params:
    """Splits stacked layers into tuples of trees, leaf by leaf, freeing each stack as soon as it is split."""

    def split(stack: Params) -> tuple:
        leaves, treedef = jax.tree.flatten(stack)
        columns = []
        for leaf in leaves:
            columns.append(jax.block_until_ready(jnp.unstack(leaf)))  # waits, so that one stack at a time is doubled
            leaf.delete()
        return tuple(jax.tree.unflatten(treedef, layer) for layer in zip(*columns))

    towers = {name: dict(tree) for name, tree in params.items()}
    for tree in towers.values():
        if "blocks" in tree:
            tree["blocks"] = split(tree["blocks"])
    return towers
