"""Writes the dataset beside this file with TensorFlow and TFDS, which the library and its tests do without.

    pip install tensorflow-cpu==2.21.0 tensorflow-datasets==4.9.10 && python make.py

Steps hold what the datasets of Open X-Embodiment do: JPEG and PNG pictures, 16-bit depth, ragged and compressed
tensors, class labels, names with a slash, texts beyond ASCII.
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

LENGTHS = (4, 1, 3)


def observation(episode: int, t: int) -> dict:
    rng = np.random.default_rng((episode, t))
    return {
        "image": tf.io.encode_jpeg(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).numpy(),
        "wrist_image": np.full((10 + episode, 12, 3), 10 * episode + t, np.uint8),
        "depth": rng.integers(0, 60_000, (4, 4, 1)).astype(np.uint16),
        "state": np.float32([episode, t, -1]),
        "points": rng.random((t % 3, 2)).astype(np.float32),
        "effort": np.float32([episode, t, 0.5]),
        "present/xyz": np.float32([t, t, episode]),
    }


class Own(tfds.core.GeneratorBasedBuilder):
    """Three episodes of one dataset."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        kinds = tfds.features

        def vector(**options):
            return kinds.Tensor(shape=(3,), dtype=np.float32, **options)

        seen = {
            "image": kinds.Image(shape=(16, 24, 3), encoding_format="jpeg"),
            "wrist_image": kinds.Image(shape=(None, None, 3), encoding_format="png"),
            "depth": kinds.Image(shape=(4, 4, 1), dtype=np.uint16, encoding_format="png"),
            "state": vector(),
            "points": kinds.Sequence(kinds.Tensor(shape=(2,), dtype=np.float32)),
            "effort": vector(encoding="zlib"),
            "present/xyz": vector(),
        }
        steps = {
            "observation": seen,
            "action": kinds.Tensor(shape=(2,), dtype=np.float64),
            "is_last": kinds.Scalar(np.bool_),
            "phase": kinds.ClassLabel(names=["reach", "grasp"]),
            "language_instruction": kinds.Text(),
        }
        metadata = {"file_path": kinds.Text(), "has_image": kinds.Scalar(np.bool_)}
        features = kinds.FeaturesDict({"steps": kinds.Dataset(steps), "episode_metadata": metadata})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for e, length in enumerate(LENGTHS):
            steps = [
                {
                    "observation": observation(e, t),
                    "action": [e + 0.1, t + 0.2],
                    "is_last": t == length - 1,
                    "phase": t % 2,
                    "language_instruction": f"öffne Schublade {e}",
                }
                for t in range(length)
            ]
            yield e, {"steps": steps, "episode_metadata": {"file_path": f"raw/{e}", "has_image": e != 1}}


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    with tempfile.TemporaryDirectory() as directory:
        builder = Own(data_dir=directory, file_format="tfrecord")
        builder.download_and_prepare()
        shutil.copytree(builder.data_dir, here / "own", dirs_exist_ok=True)
