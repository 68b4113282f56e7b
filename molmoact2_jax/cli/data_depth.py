"""`molmoact2 data depth`: depth maps to codes, buffers and masks beside a LeRobot dataset."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from molmoact2_jax.checkpoint import depth_vq as codec_files
from molmoact2_jax.checkpoint import flat
from molmoact2_jax.cli import dataset, meter
from molmoact2_jax.data import depth_columns, depth_companion, depth_maps, lerobot_meta
from molmoact2_jax.eval import depth_codec, depth_estimate, pictures
from molmoact2_jax.models import depth_vq

EPILOG = """\
Maps lie in DIR as episode_000003.npy [T, H, W], or episode_000003/000017.png (16 bits) or .npy for each frame; episodes
by the dataset's own number. `molmoact2 collect --option depth=true` leaves them so (--kind metric). A run that was cut
short goes on where it stopped, with the same command.
"""


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "depth",
        description="Writes a companion dataset with the depth codes that Think models are trained on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    dataset.add_arguments(parser)
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--maps", type=pathlib.Path, metavar="DIR", help="depth maps, see below")
    origin.add_argument("--estimator", type=pathlib.Path, metavar="FILE", help="Depth Anything V2, safetensors")
    parser.add_argument(
        "--kind",
        choices=depth_maps.KINDS,
        help="of --maps; metric: grows away from the camera (sensors, simulators); disparity: towards it",
    )
    parser.add_argument("--codec", type=pathlib.Path, required=True, metavar="FILE", help="depth VQ-VAE, safetensors")
    parser.add_argument(
        "--fit",
        type=int,
        metavar="STEPS",
        help="fit a codec to the maps first, if FILE does not exist (400 steps or more)",
    )
    parser.add_argument("--camera", help="whose pictures decide what changed (default: the first)")
    parser.add_argument("--to", type=pathlib.Path, metavar="DIR", help="companion (default: DATASET_depth beside it)")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="takes every N-th table from the I-th")
    parser.add_argument("--sheet", type=pathlib.Path, metavar="FILE", help="draws frames of the first episode, PNG")
    parser.add_argument("--json", action="store_true", help="prints one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Fits a codec if asked to, annotates, draws, reports."""
    if bool(args.kind) != bool(args.maps):
        raise ValueError(
            f"--kind: {args.kind}, expected metric or disparity with --maps, and nothing with --estimator."
        )
    shard, root = _shard(args.shard), pathlib.Path(args.dataset)
    meta = lerobot_meta.read(root)
    source = dataset.open_source(args, args.dataset)
    settings = depth_companion.Settings(args.camera or source.cameras[0], args.kind or "disparity", codec="")
    if settings.camera not in source.cameras:
        raise ValueError(f"--camera: {settings.camera!r}, expected one of {', '.join(source.cameras)}.")
    if args.maps:
        maps: depth_maps.Maps = depth_maps.MapFiles(args.maps)
    else:
        maps, settings = depth_estimate.open_maps(args.estimator, source, settings)
    found = _fit(args, meta, maps, settings.kind) if args.fit and not args.codec.exists() else {}
    codec = codec_files.load(args.codec)
    settings = dataclasses.replace(settings, codec=hashlib.sha256(args.codec.read_bytes()).hexdigest()[:16])
    annotator = depth_columns.Annotator(source, meta, maps, depth_codec.encoder(*codec), settings)
    directory = args.to or root.resolve().with_name(f"{root.resolve().name}_depth")
    with meter.Meter(f"annotating {source.name}", "frames") as progress:
        report = depth_columns.annotate(annotator, directory, shard=shard, progress=progress)
    if args.sheet:
        frames = list(depth_codec.sheet(annotator, directory, codec))
        pictures.save(pictures.depth_frames(frames, np.asarray(depth_vq.levels(*codec))), args.sheet)
    source.close()
    found |= {"companion": str(directory), "camera": settings.camera, **dataclasses.asdict(report)}
    print(json.dumps(found) if args.json else _words(found))
    return 0


def _fit(args: argparse.Namespace, meta: lerobot_meta.Meta, maps: depth_maps.Maps, kind: str) -> dict[str, Any]:
    draw = depth_codec.drawer(meta, maps, kind)
    with meter.Meter("fitting the codec", "steps") as progress:
        params, usage = depth_codec.fit(depth_vq.DepthVQConfig(), draw, args.fit, 0, progress)
    flat.save(params, args.codec)
    return {"fit": usage._asdict()}


def _shard(text: str) -> tuple[int, int]:
    index, cross, count = text.partition("/")
    if not (cross and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard: {text!r}, expected I/N with I from 0 to N - 1, such as 0/4.")
    return int(index), int(count)


def _words(found: dict[str, Any]) -> str:
    lines = []
    if "fit" in found:
        fit = found["fit"]
        lines.append(
            f"codec: {fit['used']:.0%} of the codes used (perplexity {fit['perplexity']:.0f}); "
            f"mean square error {fit['error']:.4f}, of cell averages {fit['pooled_error']:.4f}"
        )
    lines.append(
        f"{found['companion']}: {found['frames']} frames in {found['files']} tables, {found['kept']} tables kept"
    )
    if found["used"] is not None:
        lines.append(f"{found['used']:.0%} of the codes used")
    if found["changed"] is not None:
        lines.append(f"{found['changed']:.0%} of the cells change from frame to frame")
    if found["unread"] or found["missing"]:
        lines.append(
            f"{found['unread']} pictures unreadable (all cells changed), {found['missing']} frames without codes"
        )
    return "\n".join(lines)
