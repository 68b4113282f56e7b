"""Small streams of known content for the loader's tests, some of it damaged."""

import os

import numpy as np

from molmoact2_jax import batch
from molmoact2_jax.data import mixture, pack, plan
from molmoact2_jax.data.example import Conversation, Example, PaddedChunk, Skipped, Weighting, label
from molmoact2_jax.data.loader import Loader, Options
from molmoact2_jax.data.source import SampleError
from molmoact2_jax.data.stream import RowShape, Stream

SIZE, PATCHES, EOS, PAD = 4, 4, 9, 0


class Toy:
    """Examples whose every number tells which they are. Some are damaged: `torn` text, `blind` pictures."""

    def __init__(self, name, length, chunk, torn=(), blind=(), skipped=()):
        self.name, self.digest, self._length, self._chunk = name, f"{name}-{length}", length, chunk
        self.torn, self.blind, self.skipped = set(torn), set(blind), set(skipped)
        self.parts, self.problems = length, ()

    def __len__(self):
        return self._length

    def example(self, index, epoch):
        if index in self.skipped:
            raise Skipped("asked to")
        if index in self.torn:
            raise SampleError(self.name, index, None, "torn")
        rng = mixture.example_rng(1, index, self._length, epoch)
        tokens = rng.randint(10, 1000, size=rng.randint(5, 40)).astype(np.int32)
        known = label(np.zeros(0, np.int32), [Conversation(tokens, tokens % 2 == 0)], EOS, Weighting())
        return Example(
            tokens=known.tokens,
            positions=known.positions,
            segments=known.segments,
            targets=known.targets,
            weights=known.weights,
            style=batch.STYLES.index("robot_action" if self._chunk else "vlm"),
            num_crops=int(rng.randint(0, 4)),
            pictures=(index, epoch),
            chunk=PaddedChunk(rng.normal(size=(3, 2)).astype(np.float32), np.ones(3, bool), np.ones(2, bool))
            if self._chunk
            else None,
        )

    def pixels(self, example):
        index, epoch = example.pictures
        if index in self.blind:
            raise SampleError(self.name, index, 0, "blind")
        rng = np.random.default_rng([index, epoch])
        count = example.num_crops
        pooling = rng.integers(-1, count * PATCHES, (2 * count, 2)) if count else np.zeros((0, 2))
        return rng.integers(1, 255, (count, SIZE, SIZE, 3), dtype=np.uint8), pooling.astype(np.int32)


def shape(chunks, tokens=100, crops=6):
    return RowShape(pack.Limits(tokens, crops, chunks), SIZE, PATCHES, 2 * crops, 2, 3, 2, PAD)


def streams(damaged=True):
    """A robot stream of two datasets and a multimodal one; about one example in fifty is damaged."""
    blind, torn = (range(3, 60, 19), range(5, 60, 23)) if damaged else ((), ())
    robots = [Toy("arm", 60, True, torn, blind), Toy("hand", 45, True, skipped=[7])]
    return {
        "robot": Stream(robots, np.array([0.7, 0.3]), shape(3), buffer=8),
        "vlm": Stream([Toy("words", 50, False, blind=blind)], np.ones(1), shape(0, tokens=120), buffer=8),
    }


def loader(damaged=True, vlm_rate=0.3, **options):
    options = {"global_batch": 4, "max_damage": 1.0} | options
    made = streams(damaged)
    return Loader(made, Options(**options), plan.Schedule(tuple(made), vlm_rate))


class Who:
    """Tells in which process it is."""

    def pid(self):
        return os.getpid()
