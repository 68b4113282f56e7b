"""Streams over small real datasets of every format, for the loader's tests of whole processes."""

import pathlib

import checkpoints
import fixtures
import formats
import numpy as np

from molmoact2_jax.data import catalog, loader, norm_stats, open_files, pack, repack, robot, stats, table
from molmoact2_jax.data.robot_options import Options, Robot
from molmoact2_jax.data.stream import RowShape, Stream

FACTS = norm_stats.Tag(horizon=10, setup="an arm", control="absolute joint pose", normalize_gripper=True)
REPACKED = "repacked"
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tiny"


def write(root):
    """Writes the same dataset of 27 frames in every format."""
    for kind in formats.KINDS:
        formats.write(kind, root / kind, formats.smooth())
    repack.repack(_open(root, formats.RLDS, None), root / REPACKED, repack.Plan("jpeg", size=(70, 70)))
    return root


def _open(root, kind, files):
    meaning = fixtures.ROW if kind in (formats.RLDS, formats.ARCHIVE) else formats.TAG
    return catalog.open_source(root / kind, meaning, table.Options(name=kind, files=files))


def loaded(root, augment="full", **options):
    """Makes a loader of all of them; augmentation is on the host, where its draws belong to the example."""
    archive, shared = checkpoints.load(GOLDEN), open_files.OpenFiles()
    sources = [_open(pathlib.Path(root), kind, shared) for kind in sorted((*formats.KINDS, REPACKED))]
    tag, shaping = stats.measure_sources(sources[:1], FACTS), Options(action_format="continuous", augment=augment)
    datasets = [robot.RobotDataset(s, Robot("own", tag, "q01_q99"), archive.encoding, shaping) for s in sources]
    processor = archive.encoding.processor
    side = -(-(processor.image_size // processor.patch_size) // processor.pooling)
    shape = RowShape(
        pack.Limits(tokens=900, crops=8, chunks=5),
        crop_size=processor.image_size,
        patches=archive.encoding.patches,
        windows=8 * side**2,
        window=processor.pooling**2,
        horizon=30,
        channels=32,
        pad=archive.encoding.ids.pad,
    )
    stream = Stream(datasets, np.full(len(datasets), 1 / len(datasets)), shape)
    return loader.Loader({"robot": stream}, loader.Options(**{"global_batch": 2} | options))
