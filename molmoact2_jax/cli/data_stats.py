"""`molmoact2 data stats`: exact statistics of datasets, merging of files, fit to a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from molmoact2_jax.cli import dataset, stats_table
from molmoact2_jax.data import fit_report, lerobot_meta, norm_stats, normalize, oxe, stats

EPILOG = (
    "Several datasets give the exact statistics of their union. Where only statistics are at hand, several files "
    "(norm_stats.json with the same --tag, or meta/stats.json of LeRobot datasets) are merged as released: quantiles "
    "become averages weighted by count, which the result says. Exit status 1 where --fit finds errors, or a channel "
    "moves over far more than the scale it is divided by (--allow-dead accepts that)."
)


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "stats", description="Computes statistics from columns alone; no picture is read.", epilog=EPILOG
    )
    dataset.add_arguments(parser, several=True)
    parser.add_argument(
        "--tag", metavar="NAME", help="robot in norm_stats.json (default: that of --as, or the dataset)"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="FILE", help="norm_stats.json to write; other tags are kept"
    )
    parser.add_argument("--fit", type=pathlib.Path, metavar="CHECKPOINT", help="compare with this checkpoint's --tag")
    parser.add_argument("--mode", default="q01_q99", choices=norm_stats.MODES, help="how --out normalises")
    parser.add_argument("--horizon", type=int, help="steps of a chunk (default: one second)")
    parser.add_argument("--setup", help="the robot in words, for the prompt")
    parser.add_argument("--control", help="the kind of action in words, for the prompt")
    parser.add_argument("--normalize-gripper", action="store_true", default=None, help="normalise grippers like joints")
    parser.add_argument("--allow-dead", action="store_true", help="accept channels with a dead scale")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Merges files, or measures datasets and compares them."""
    reports: Mapping[str, fit_report.FitReport] = {}
    if _are_files(args.dataset):
        name, tag = args.tag or "", _merged(args)
    else:
        numbers = _numbers(args)
        name = args.tag or _known(args.meaning) or numbers[0].name
        tag = stats.measure(numbers, _facts(args, numbers[0]))
        reports = _fits(args, name, numbers) if args.fit else {}
    if args.out is not None:
        _write(args, name, tag)
    if args.json:
        content = norm_stats.to_json(norm_stats.NormStats(args.mode, {name: tag}))
        print(json.dumps(content | {"fit": {key: report.to_json() for key, report in reports.items()}}, indent=1))
    else:
        stats_table.show(name, tag, args.mode)
        for key, report in reports.items():
            stats_table.show_fit(key, args.fit, report)
    dead = not args.allow_dead and any(normalize.dead_scales(getattr(tag, k), args.mode) for k in ("action", "state"))
    return int(dead or any(f.severity == "error" for report in reports.values() for f in report.findings))


def _are_files(specs: Sequence[str]) -> bool:
    files = [spec for spec in specs if spec.endswith(".json")]
    if files and len(files) < len(specs):
        raise ValueError(f"{files[0]}: statistics among datasets, expected either. Merge files apart from datasets.")
    return bool(files)


def _numbers(args: argparse.Namespace) -> list[stats.Numbers]:
    numbers = []
    for spec in args.dataset:
        source = dataset.open_source(args, spec)
        numbers.append(stats.read(source))
        source.close()
    return numbers


def _merged(args: argparse.Namespace) -> norm_stats.Tag:
    if not args.tag:
        raise ValueError("--tag: missing, expected the name of the robot in the files to merge.")
    return stats.merge([_stored(args, pathlib.Path(path)) for path in args.dataset])


def _stored(args: argparse.Namespace, path: pathlib.Path) -> norm_stats.Tag:
    if path.name == "stats.json" and path.parent.name == "meta":
        return stats.of_lerobot(path.parent.parent, _facts(args, lerobot_meta.read(path.parent.parent)))
    return norm_stats.load(path).tag(args.tag)


def _known(meaning: str | None) -> str:
    """Returns the released tag of a dataset that is known by name, "" for others."""
    row = oxe.ROWS.get(meaning or "")
    name = row.tag if row else meaning
    return name if name in oxe.TAGS else ""


def _facts(args: argparse.Namespace, numbers: stats.Numbers | lerobot_meta.Meta) -> norm_stats.Tag:
    """What the file says besides numbers: by the released tag, the arguments, or the dataset."""
    known = oxe.TAGS.get(_known(args.meaning), dataset.OWN)
    horizon = args.horizon or known.horizon or max(1, round(numbers.fps))
    grippers = known.normalize_gripper if args.normalize_gripper is None else args.normalize_gripper
    return norm_stats.Tag(
        horizon=horizon,
        n_action_steps=horizon,
        cameras=known.cameras or numbers.cameras,
        setup=args.setup or known.setup,
        control=args.control or known.control,
        action_key=known.action_key,
        state_keys=known.state_keys,
        normalize_gripper=grippers,
    )


def _fits(args: argparse.Namespace, name: str, numbers: Sequence[stats.Numbers]) -> Mapping[str, fit_report.FitReport]:
    path = args.fit / "norm_stats.json" if args.fit.is_dir() else args.fit
    known = norm_stats.load(path)
    return {each.name: fit_report.fit(each, known.tag(name), known.mode) for each in numbers}


def _write(args: argparse.Namespace, name: str, tag: norm_stats.Tag) -> None:
    known = norm_stats.load(args.out) if args.out.exists() else norm_stats.NormStats(args.mode)
    if known.mode != args.mode:
        raise ValueError(f"{args.out}: normalises by {known.mode}, expected {args.mode}. Choose --mode {known.mode}.")
    _require_same_robot(args.out, name, known.tags.get(name), tag)
    norm_stats.save(args.out, dataclasses.replace(known, tags={**known.tags, name: tag}))


def _require_same_robot(path: pathlib.Path, name: str, before: norm_stats.Tag | None, now: norm_stats.Tag) -> None:
    for kind in ("action", "state"):
        old, new = getattr(before, kind, None), getattr(now, kind)
        if old is not None and new is not None and old.width != new.width:
            raise ValueError(
                f"{path}: {name!r} has {old.width} {kind} channels, the dataset {new.width}, expected the same robot. "
                "Choose another --tag."
            )
