"""What a run measures on held-out episodes while it trains: validation loss, and open-loop error of actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from molmoact2_jax.data import loader
from molmoact2_jax.eval import open_loop
from molmoact2_jax.nn import lora
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.serve import observe
from molmoact2_jax.serve.policy import Policy
from molmoact2_jax.train import feed, metrics, setup, step


class ValidationLoss:
    """The training loss on the same few batches of held-out episodes, without dropout and augmentation."""

    def __init__(self, made: setup.Setup, sides: feed.Sides, held: Sequence[feed.Held]):
        """Makes the batches."""
        sets = [dataclasses.replace(entry, path="") for entry in made.recipe.data.robots]
        stream = feed.robot_stream(made.model, made.recipe.data, sides, list(zip(sets, (h.source for h in held))))
        # Whether too much is damaged is for the loader of the training to say: here a single episode may be a tenth.
        share = loader.Options(made.recipe.batch_size, jax.process_index(), jax.process_count(), max_damage=1.0)
        with_pixels = loader.Loader({"robot": stream}, share)
        self._made = made
        self._batches = [next(with_pixels) for _ in range(made.recipe.evaluate.batches)]
        with_pixels.close()
        self._function = step.compile_evaluate(made.cfg, made.placed, made.mesh)

    def __call__(self, state: step.State, number: int) -> dict[str, float]:
        """Returns means over the batches, named `validation/...`."""
        del number
        window = metrics.Window()
        for batch in self._batches:
            rows = meshes.assemble(step.rows_of(batch), self._made.mesh, self._made.recipe.batch_size)
            window.add(self._function(state, rows))
        found = window.report()
        found.pop("step_seconds")
        return {f"validation/{name}": value for name, value in found.items()}


class OpenLoopError:
    """Error of predicted chunks on held-out episodes, against that of always predicting the mean action."""

    def __init__(self, made: setup.Setup, host: observe.Host, held: Sequence[feed.Held]):
        """Chooses the episodes; the policy is made at the first call."""
        self._made, self._host, self._held = made, host, held
        self._policy: Policy | None = None

    def __call__(self, state: step.State, number: int) -> dict[str, float]:
        """Returns `open_loop/TAG` and `open_loop/TAG/constant`: mean absolute errors in half ranges of each channel."""
        del number
        params = lora.merge(step.compute_params(self._made.cfg.dtype, *_current(state)))
        if self._policy is None:
            self._policy = Policy(self._host, params, unroll=False)
        self._policy.replace(params)
        found = {}
        for held in self._held:
            tag = self._host.tag(held.tag)
            count = min(self._made.recipe.evaluate.episodes, int((held.source.episode_lengths > 0).sum()))
            setting = open_loop.Setting(open_loop.held_out(held.source, count), frames=4, seeds=(0,), batch=8)
            compared = open_loop.compare(self._plan, held.source, tag, held.tag, setting)
            told = open_loop.summary(compared, tag.action)
            found[f"open_loop/{held.tag}"] = told["normalised"]
            found[f"open_loop/{held.tag}/constant"] = told["normalised_constant"]
        return found

    def _plan(self, observations: Sequence, seeds: Sequence) -> list[np.ndarray]:
        assert self._policy is not None
        horizon = self._host.horizon(self._host.tag(observations[0].norm_tag))
        noise = [
            np.random.default_rng(list(seed)).standard_normal((horizon, self._made.model.action_dim), np.float32)
            for seed in seeds
        ]
        answers = self._policy.predict_actions(observations, noise=noise, n_action_steps=horizon)
        return [answer.actions for answer in answers]


def _current(state: step.State) -> tuple:
    """Returns the weights to use: averaged where an average is kept."""
    return (state.train if state.optimizer.ema is None else state.optimizer.ema), state.frozen
