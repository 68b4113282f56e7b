"""The observations of a golden archive as robot datasets in memory, one of a single example for each case."""

import json

import numpy as np

from molmoact2_jax.data import source
from molmoact2_jax.train import recipe


class Case(source.EpisodeSource):
    """One episode whose first frame shows the case's pictures and starts its `target_actions`; nobody draws another."""

    fps, problems = 10.0, ()

    def __init__(self, arrays, number, about, tag):
        part = f"case{number}/"
        self.arrays = {name.removeprefix(part): arrays[name] for name in arrays.files if name.startswith(part)}
        self.name = self.digest = f"case{number}"
        self.cameras, self.filmed = tuple(tag.cameras), about["n_images"]
        self.actions = raw(self.arrays["target_actions"], tag.action)
        length, channels = self.actions.shape
        self.state_names = tuple(f"s{i}" for i in range(len(self.arrays["state"])))
        self.action_names = tuple(f"a{i}" for i in range(channels))
        self.episode_ids = self.episode_starts = np.zeros(1, np.int64)
        self.episode_lengths, self.valid = np.array([length]), np.ones(1, bool)
        self.said = about["task"]

    def column_shapes(self):
        return {"state": self.arrays["state"].shape, "action": self.actions.shape[1:]}

    def columns(self, names):
        return {name: self.column(name, 0) for name in names}

    def column(self, name, episode):
        return self.actions if name == "action" else np.tile(self.arrays["state"], (len(self.actions), 1))

    def tasks(self, episode, frame):
        return (self.said,)

    def cameras_of(self, episode):
        return self.cameras[: self.filmed]

    def frames(self, episode, frames, cameras):
        return {c: np.stack([self.arrays[f"image{self.cameras.index(c)}"]] * len(frames)) for c in cameras}

    def close(self):
        pass


def raw(normalised, stats):
    """Maps normalised actions to robot units; channels that pass through raw stay."""
    low, high = np.float32(stats.q01), np.float32(stats.q99)
    return np.where(stats.mask, (normalised + 1) / 2 * (high - low) + low, normalised).astype(np.float32)


def opened(directory, stats):
    """Returns all cases of an archive as `feed.streams` takes datasets."""
    arrays, about = np.load(directory / "golden.npz"), json.loads((directory / "golden.json").read_text())["cases"]
    return [
        (recipe.RobotSet(f"case{i}", case["tag"]), Case(arrays, i, case, stats.tag(case["tag"])))
        for i, case in enumerate(about)
    ]
