"""Questions about pictures, videos and text to training examples.

A record of a set (`records.open_records`) is an object with
  images   paths beside the file, or {"bytes": ...} inside a Parquet file; or
  video    a path, with `duration` in seconds where known;
  sizes    [[width, height], ...] of the pictures in pixels; read from the pictures where absent;
  style    kind of question (`text/styles.py`); subtitle  words of a video;
  messages [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...], alternating, or
  conversations, a list of such lists about the same pictures.
In place of its content an answer may have `marks`, which are printed as the model writes them (`text/pointing.py`):
  {"points" | "tracks": [[place, x, y] or [place, x, y, object], ...], "label": ..., "mode": ..., "alt": ...}
  {"boxes": [[left, top, right, bottom], ...], "label": ...}
with x and y in pixels, and place the picture's number from 1 or the second of the video; objects may have any numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import math
import os
import pathlib
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from molmoact2_jax import batch, config
from molmoact2_jax.data import augment, clips, films, images, mixture, pictures, records, talk, video
from molmoact2_jax.data import example as example_lib
from molmoact2_jax.data.example import Encoding, Example, Weighting
from molmoact2_jax.data.source import SampleError
from molmoact2_jax.text import pointing, prompt


@dataclasses.dataclass(frozen=True)
class Options:
    """Choices that shape the examples of a set.

    Attributes:
      weighting: loss weights.
      max_images: examples with more pictures are skipped and counted.
      high_res: share of examples whose pictures are cut into up to `high_res_crops` tiles (`training.md` 1.7).
      augment: "none", or a mode of `augment.MODES`.
      seed: of all choices.
    """

    weighting: Weighting = dataclasses.field(default_factory=Weighting)
    max_images: int = 5
    high_res: float = 0.0
    high_res_crops: int = 24
    augment: str = "none"
    seed: int = mixture.DATA_SEED

    def __post_init__(self):
        if self.augment not in ("none", *augment.MODES):
            raise ValueError(f"Options.augment: {self.augment!r}, expected one of {['none', *augment.MODES]}.")


class Shown(NamedTuple):
    """What an example shows: pictures as stored, or a video and the seconds at which it is shown.

    `seed` names the example: dataset, record, epoch.
    """

    settings: config.ProcessorConfig
    seed: tuple[int, int, int]
    pictures: tuple[Any, ...] = ()
    video: str = ""
    seconds: tuple[float, ...] = ()


class Set(NamedTuple):
    """A set on disk: its name, its records, and the directory beside which its pictures lie."""

    name: str
    found: records.Records
    root: pathlib.Path

    @classmethod
    def open(cls, name: str, root: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> Set:
        """Opens a directory of JSON lines or Parquet files; the errors of `records.open_records`."""
        return cls(name, records.open_records(root, cache), pathlib.Path(root))


class VlmDataset:
    """The records of one set. Those that its quarantine names by number are skipped, not renumbered."""

    def __init__(self, data: Set, encoding: Encoding, options: Options = Options(), quarantined: Collection[int] = ()):
        self._quarantined = frozenset(quarantined)
        self.name, self.parts = data.name, len(data.found)
        self.problems: tuple[SampleError, ...] = ()  # records are read one by one
        self.digest = hashlib.sha256(repr((data.found.digest, options)).encode()).hexdigest()
        self._data, self._encoding, self._options = data, encoding, options
        self._decoders = video.Decoders()

    def __len__(self) -> int:
        return len(self._data.found)

    def example(self, index: int, epoch: int) -> Example:
        """Makes the example of a record; see `example.Dataset`."""
        if index in self._quarantined:
            raise example_lib.Skipped("quarantined")
        try:
            return self._example(self._data.found[index], index, epoch)
        except example_lib.Skipped:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, OSError) as error:
            raise self._error(index, error) from error

    def pixels(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Decodes and cuts the pictures or frames; see `example.Dataset`."""
        shown: Shown = example.pictures
        if not example.num_crops:
            side = shown.settings.image_size
            return np.zeros((0, side, side, 3), np.uint8), np.zeros((0, shown.settings.pooling**2), np.int32)
        try:
            decoded = self._decoded(shown)
        except (ValueError, OSError) as error:
            raise self._error(shown.seed[1], error) from error
        if self._options.augment != "none":
            rngs = (np.random.default_rng((self._options.seed, *shown.seed, i)) for i in range(len(decoded)))
            decoded = [augment.augment(p, rng, self._options.augment) for p, rng in zip(decoded, rngs)]
        if shown.video:
            crops = clips.crops_of(np.stack(decoded), shown.settings)
            return crops.pixels, crops.pooling
        return images.join([images.crops_of(p, shown.settings) for p in decoded], self._encoding.patches)

    def _decoded(self, shown: Shown) -> list[np.ndarray]:
        if shown.video:
            return list(films.show(self._decoders, self._path(shown.video), shown.seconds))
        return [pictures.decode(self._bytes(picture)) for picture in shown.pictures]

    def _bytes(self, picture: Any) -> bytes:
        """Returns the encoded picture of a path, or of a Parquet cell that holds it."""
        if isinstance(picture, Mapping):
            return picture.get("bytes") or self._bytes(picture["path"])
        return picture if isinstance(picture, bytes) else pathlib.Path(self._path(picture)).read_bytes()

    def _path(self, relative: str) -> str:
        return str(self._data.root / relative)

    def _example(self, record: Mapping[str, Any], index: int, epoch: int) -> Example:
        rng = mixture.example_rng(self._options.seed, index, len(self), epoch)
        shown = self._shown(record, self._settings(rng), (zlib.crc32(self.name.encode()), index, epoch))
        sizes = functools.cache(lambda: self._sizes(record, shown))
        visuals, crops = self._visuals(shown, sizes)
        if record.get("subtitle"):
            visuals = np.append(visuals, self._encoding.tokenizer.encode(record["subtitle"])).astype(np.int32)
        conversations = [
            talk.conversation(messages, record.get("style") or "", self._encoding, sizes, video=bool(shown.video))
            for messages in record.get("conversations") or [record["messages"]]
        ]
        labelled = example_lib.label(visuals, conversations, self._encoding.ids.eos, self._options.weighting)
        return Example(
            tokens=labelled.tokens,
            positions=labelled.positions,
            segments=labelled.segments,
            targets=labelled.targets,
            weights=labelled.weights,
            style=batch.STYLES.index("vlm"),
            num_crops=crops,
            pictures=shown,
        )

    def _settings(self, rng: np.random.RandomState) -> config.ProcessorConfig:
        processor = self._encoding.processor
        if not self._options.high_res or rng.random_sample() >= self._options.high_res:
            return processor
        return dataclasses.replace(processor, max_crops=self._options.high_res_crops)

    def _shown(self, record: Mapping[str, Any], settings: config.ProcessorConfig, seed: tuple[int, int, int]) -> Shown:
        if record.get("video") and record.get("images"):
            raise ValueError("images and a video in one record, expected either. Make two records of it")
        if record.get("video"):
            duration = record.get("duration") or films.header(self._path(record["video"])).duration
            if not 0 < duration < math.inf:
                raise ValueError(f"duration: {duration}, expected seconds above 0")
            seconds = tuple(float(second) for second in clips.times(duration, settings))
            return Shown(settings, seed, video=record["video"], seconds=seconds)
        found = tuple(record.get("images") or ())
        if len(found) > self._options.max_images:
            raise example_lib.Skipped(f"more than {self._options.max_images} pictures")
        return Shown(settings, seed, pictures=found)

    def _sizes(self, record: Mapping[str, Any], shown: Shown) -> Sequence[pointing.Size]:
        """Returns widths and heights in pixels: those of the record, or of the files' headers."""
        written = [(float(width), float(height)) for width, height in record.get("sizes") or ()]
        expected = 1 if shown.video else len(shown.pictures)
        if written and len(written) != expected:
            raise ValueError(f"sizes: {len(written)}, expected {expected}, one for each picture or the video")
        if written:
            return written
        if shown.video:
            header = films.header(self._path(shown.video))
            return [(header.width, header.height)]
        found = []
        for picture in shown.pictures:
            with Image.open(io.BytesIO(self._bytes(picture))) as image:
                found.append((float(image.width), float(image.height)))
        return found

    def _visuals(self, shown: Shown, sizes: talk.Sizes) -> tuple[np.ndarray, int]:
        """Returns BOS with the tokens of what is shown, and the number of crops."""
        text, ids, settings = self._encoding.tokenizer, self._encoding.ids, shown.settings
        if shown.video:
            pooled = -(-(settings.image_size // settings.patch_size) // settings.video_pooling)
            tokens = prompt.video_tokens(text, ids, shown.seconds, (pooled, pooled), settings)
            return prompt.encode_prompt(text, ids, prompt.VIDEO, [tokens]), len(shown.seconds)
        # One crop is one crop whatever the size, so that headers need not be read.
        known = [(1.0, 1.0)] * len(shown.pictures) if settings.crop_mode == "resize" else sizes()
        layouts = [images.layout(int(height), int(width), settings) for width, height in known]
        visuals = [prompt.image_tokens(ids, grid, settings) for grid, _ in layouts]
        placeholders = prompt.image_placeholders(len(visuals))
        return prompt.encode_prompt(text, ids, placeholders, visuals), sum(crops for _, crops in layouts)

    def _error(self, index: int, error: Exception) -> SampleError:
        return SampleError(self.name, index, None, f"{type(error).__name__}: {error}")
