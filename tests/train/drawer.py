"""A small LeRobot dataset that fits a golden checkpoint, and a recipe that trains on it."""

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.data import lerobot_write
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.train import loop, step

STATES, ACTIONS = tuple(f"j{i}" for i in range(8)), tuple(f"j{i}" for i in range(7))


def record(directory, episodes=6, frames=12):
    """Writes a small LeRobot dataset that fits the golden checkpoint's tag `libero`."""
    writer = lerobot_write.Writer(
        directory,
        fps=10,
        features={
            "observation.state": lerobot_write.vector(STATES),
            "action": lerobot_write.vector(ACTIONS),
            "observation.images.image": lerobot_write.camera(64, 64, dtype="image"),
            "observation.images.wrist_image": lerobot_write.camera(64, 64, dtype="image"),
        },
    )
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        phase = rng.uniform(0, 6)
        for t in range(frames):
            pictures = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
            writer.add(
                {
                    "observation.state": 0.3 * np.sin(phase + 0.1 * t + np.arange(8)).astype(np.float32),
                    "action": 0.2 * np.cos(phase + 0.1 * t + np.arange(7)).astype(np.float32),
                    "observation.images.image": pictures[0],
                    "observation.images.wrist_image": pictures[1],
                },
                task="open the drawer" if episode % 2 else "pick up the bowl",
            )
        writer.end_episode()
    return writer.finalize()


def table(run_dir, dataset, golden, **changes):
    made = dict(
        run_dir=str(run_dir), steps=8, batch_size=4, augment="none", dtype="float32",
        model=dict(init_from=str(golden / "tiny")),
        data=dict(robots=[dict(path=str(dataset), tag="libero")], tokens=200, crops=2),
        loss=dict(num_samples=2, remat_llm="none", remat_vit="none", remat_expert="none"),
        optimizer=dict(warmup_steps=2), mesh=dict(data=1, fsdp=1, tensor=1), log=dict(every=4), save=dict(every=3),
    )  # fmt: skip
    return made | changes


def on_one_device(monkeypatch):
    """Lets runs use the first device alone."""
    build = meshes.build
    monkeypatch.setattr(meshes, "build", lambda cfg, devices=None: build(cfg, devices or jax.devices()[:1]))


def count_steps(monkeypatch):
    """Replaces the training step by one that only counts, and returns the list of rows that it will have been given."""
    seen = []

    def compiled(cfg, placed, mesh):
        def count(state, rows):
            seen.append(np.asarray(rows.tokens).tolist())
            state = state._replace(optimizer=state.optimizer._replace(step=state.optimizer.step + 1))
            return state, {"loss": jnp.float32(len(seen))}

        return count

    monkeypatch.setattr(step, "compile_step", compiled)
    return seen


def stop_after(monkeypatch, steps):
    """Lets a run believe after that many steps that a signal has come."""
    polls = iter(range(1000))
    monkeypatch.setattr(loop.Stop, "agreed", lambda self: next(polls) == steps)
